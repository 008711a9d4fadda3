"""Compaction reaches exactly the serial target, whatever the model: synthetic denoisers, then a bundle through the command."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nemodiff_trt.command_line import run_app
from nemodiff_trt.runtime.cli.app import build_app
from nemodiff_trt.runtime.speed_of_light import Compaction, Denoise, SerialTrajectory, compact, greedy_bound, serial_denoise
from nemodiff_trt.runtime.speed_of_light.answer import BlockAnalysis
from nemodiff_trt.runtime.speed_of_light.serial import SpecialTokens
from nemodiff_trt.runtime.speed_of_light.totals import BoundTotals

MASK, EOS = 99, 1


def nemodiff(*arguments: str) -> int:
    return run_app(build_app(), "nemodiff", arguments)


def arbitrary_denoiser(seed: int, num_tokens: int, stability: int) -> Denoise:
    """Decisions drawn from a hash of the block. Of `stability` positions in ten, the token does not depend on the block."""

    def denoise(block: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        digest = hashlib.sha256(block.tobytes() + seed.to_bytes(8, "little")).digest()
        rng, fixed = np.random.default_rng(list(digest)), np.random.default_rng(seed)
        free, stable = rng.integers(0, num_tokens, len(block)), fixed.integers(0, num_tokens, len(block))
        token = np.where(fixed.integers(0, 10, len(block)) < stability, stable, free)
        # Few levels, so that ties happen.
        return token, rng.integers(1, 6, len(block)).astype(np.float32) / 5

    return denoise


def masked(length: int) -> np.ndarray:
    return np.array([5] + [MASK] * (length - 1), np.int64)


@st.composite
def cases(draw: st.DrawFn) -> tuple[Denoise, np.ndarray, SpecialTokens]:
    denoise = arbitrary_denoiser(draw(st.integers(0, 2**32)), draw(st.integers(1, 6)), draw(st.integers(0, 10)))
    return denoise, masked(draw(st.integers(2, 12))), SpecialTokens(MASK, draw(st.sampled_from([None, EOS])))


def replay(denoise: Denoise, block: np.ndarray, compaction: Compaction) -> np.ndarray:
    """The block that the commits lead to when every token is what the model decides in that step."""
    state = block.copy()
    for positions in compaction.commits:
        chosen = list(positions)
        assert np.all(state[chosen] == MASK)
        state[chosen] = denoise(state)[0][chosen]
    return state


@settings(deadline=None, max_examples=150)
@given(cases(), st.sampled_from([0, 1, 7, 5000]))
def test_compaction_ends_in_the_serial_target_within_its_budget(
    case: tuple[Denoise, np.ndarray, SpecialTokens], budget: int
) -> None:
    denoise, block, special = case
    trajectory = serial_denoise(denoise, block, special)
    found = compact(denoise, block, trajectory, special, budget)
    assert trajectory.is_reached_by(replay(denoise, block, found))
    assert found.simulated_forwards <= budget


@settings(deadline=None, max_examples=150)
@given(cases())
def test_compaction_takes_the_steps_of_greedy_acceptance_wherever_that_is_exact(
    case: tuple[Denoise, np.ndarray, SpecialTokens],
) -> None:
    denoise, block, special = case
    trajectory = serial_denoise(denoise, block, special)
    analysis = BlockAnalysis(
        trajectory,
        greedy_bound(denoise, block, trajectory, special),
        compact(denoise, block, trajectory, special),
        refreshes=1,
    )
    num_serial = len(trajectory.steps)
    assert analysis.compaction.num_steps <= num_serial
    if analysis.greedy.is_exact and analysis.greedy.num_steps <= num_serial:
        assert analysis.compaction.num_steps == analysis.greedy.num_steps
    # Made exact by falling back on serial steps, greedy acceptance is never ahead of compaction.
    assert analysis.compaction.num_steps <= analysis.exact_greedy_steps
    bounds = BoundTotals.of([analysis])
    if bounds.compaction.tokens_per_forward is not None and bounds.exact_greedy.tokens_per_forward is not None:
        assert bounds.exact_greedy.tokens_per_forward <= bounds.compaction.tokens_per_forward


def scripted(answers: dict[tuple[int, ...], tuple[list[int], list[float]]]) -> Denoise:
    def denoise(block: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        token, confidence = answers[tuple(block.tolist())]
        return np.array(token), np.array(confidence, np.float32)

    return denoise


# Serially 7, 8, 9. Committing 7 and 9 together makes the model want 2 between them: greedy acceptance gets stuck.
STUCK = scripted(
    {
        (5, MASK, MASK, MASK): ([0, 7, 4, 9], [0, 0.9, 0.3, 0.5]),
        (5, 7, MASK, MASK): ([0, 0, 8, 9], [0, 0, 0.8, 0.5]),
        (5, 7, 8, MASK): ([0, 0, 0, 9], [0, 0, 0, 0.5]),
        (5, 7, MASK, 9): ([0, 0, 2, 0], [0, 0, 0.9, 0]),
    }
)


def stuck_case() -> tuple[SerialTrajectory, SpecialTokens]:
    special = SpecialTokens(MASK, None)
    return serial_denoise(STUCK, masked(4), special), special


def test_serial_denoising_commits_the_most_confident_mask() -> None:
    trajectory, _ = stuck_case()
    assert trajectory.target.tolist() == [5, 7, 8, 9]
    assert trajectory.order == (1, 2, 3)
    assert [step.block.tolist() for step in trajectory.steps][1] == [5, 7, MASK, MASK]


def test_greedy_acceptance_is_no_bound_where_a_commit_changes_what_follows() -> None:
    trajectory, special = stuck_case()
    greedy = greedy_bound(STUCK, masked(4), trajectory, special)
    assert (greedy.num_steps, greedy.is_exact) == (2, False)
    # The longer prefix is not safe, so the serial step is taken, and both others together behind it.
    assert compact(STUCK, masked(4), trajectory, special).commits == ((1,), (2, 3))


def test_a_prefix_that_makes_the_way_longer_is_not_safe() -> None:
    # Serially 7, 8, EOS. With 7 and EOS together the model wants 2 between them until both positions behind are filled.
    m = MASK
    denoise = scripted(
        {
            (5, m, m, m, m, m): ([0, 7, 4, EOS, 6, 6], [0, 0.9, 0.3, 0.5, 0.1, 0.1]),
            (5, 7, m, m, m, m): ([0, 0, 8, EOS, 6, 6], [0, 0, 0.8, 0.5, 0.1, 0.1]),
            (5, 7, 8, m, m, m): ([0, 0, 0, EOS, 6, 6], [0, 0, 0, 0.5, 0.1, 0.1]),
            (5, 7, m, EOS, m, m): ([0, 0, 2, 0, 6, 6], [0, 0, 0.1, 0, 0.9, 0.8]),
            (5, 7, m, EOS, 6, m): ([0, 0, 2, 0, 0, 6], [0, 0, 0.1, 0, 0, 0.9]),
            (5, 7, m, EOS, 6, 6): ([0, 0, 8, 0, 0, 0], [0, 0, 0.9, 0, 0, 0]),
        }
    )
    special = SpecialTokens(MASK, EOS)
    trajectory = serial_denoise(denoise, masked(6), special)
    greedy = greedy_bound(denoise, masked(6), trajectory, special)
    assert (len(trajectory.steps), greedy.num_steps, greedy.is_exact) == (3, 4, True)
    assert compact(denoise, masked(6), trajectory, special).commits == ((1,), (2, 3))


def test_without_budget_only_what_lies_on_the_serial_trajectory_is_safe() -> None:
    def steady(block: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        # Confidence of the last position rises once the first mask is fixed: its rank is not its turn.
        return np.array([0, 7, 8, 9]), np.array([0, 0.9, 0.5, 0.4 if block[1] == MASK else 0.8], np.float32)

    special = SpecialTokens(MASK, None)
    trajectory = serial_denoise(steady, masked(4), special)
    assert trajectory.order == (1, 3, 2)
    assert compact(steady, masked(4), trajectory, special).num_steps == 1
    short = compact(steady, np.array([5, MASK, MASK, MASK]), trajectory, special, budget=0)
    # All three are the whole trajectory, which needs no simulation.
    assert (short.num_steps, short.simulated_forwards) == (1, 0)
    found = compact(STUCK, masked(4), stuck_case()[0], special, budget=0)
    assert found.is_over_budget
    assert found.commits == ((1,), (2, 3))


def test_an_eos_ends_the_block_and_masks_behind_it_do_not_count() -> None:
    def ending(block: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return np.array([0, 7, EOS, 3]), np.array([0, 0.9, 0.8, 0.1], np.float32)

    special = SpecialTokens(MASK, EOS)
    trajectory = serial_denoise(ending, masked(4), special)
    assert trajectory.target.tolist() == [5, 7, EOS, MASK]
    assert (trajectory.num_needed, len(trajectory.steps)) == (3, 2)
    assert compact(ending, masked(4), trajectory, special).block.tolist() == [5, 7, EOS, MASK]


def test_the_command_writes_figures_and_picture(
    tiny_bundle_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output, picture = tmp_path / "figures.json", tmp_path / "figures.svg"
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("one two\nthree\n")
    command = ["sol", "--bundle", str(tiny_bundle_dir), "--prompts-file", str(prompts), "--max-new-tokens", "12"]
    lengths = ["--block-length", "4", "--block-length", "8", "--threshold", "0.9"]
    assert nemodiff(*command, *lengths, "--output", str(output), "--plot", str(picture)) == 0
    printed = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert printed["compaction_equals_serial"] is True
    written = json.loads(output.read_text())
    ways = ("serial", "greedy", "greedy, exact", "compaction", "diffusion 0.9", "self_speculation")
    assert {(row["way"], row["block_length"]) for row in written["rows"]} == {
        (way, length) for way in ways for length in (4, 8)
    }
    for found in printed["block_lengths"].values():
        assert found["compaction"]["acceptance"] >= found["serial"]["acceptance"]
    assert "<svg" in picture.read_text()


def test_bad_input_is_refused_before_anything_runs(tiny_bundle_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert nemodiff("sol", "--bundle", str(tiny_bundle_dir), "--block-length", "64") == 2
    assert "block_length: got 64" in capsys.readouterr().err
    assert nemodiff("sol", "--bundle", str(tiny_bundle_dir), "--plot", "x.pdf") == 2
    assert "plot: got 'x.pdf'" in capsys.readouterr().err


def test_a_compaction_that_misses_the_target_ends_the_run(
    tiny_bundle_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(
        denoise: Denoise, block: np.ndarray, trajectory: SerialTrajectory, special: SpecialTokens, budget: int
    ) -> Compaction:
        return Compaction((), block, simulated_forwards=0, is_over_budget=False)

    monkeypatch.setattr("nemodiff_trt.runtime.speed_of_light.answer.compact", wrong)
    prompts, output = tmp_path / "prompts.txt", tmp_path / "figures.json"
    prompts.write_text("one two")
    command = ("sol", "--bundle", str(tiny_bundle_dir), "--prompts-file", str(prompts), "--block-length", "8")
    assert nemodiff(*command, "--output", str(output)) == 1
    assert "compaction ended in" in capsys.readouterr().err
    assert not output.exists()

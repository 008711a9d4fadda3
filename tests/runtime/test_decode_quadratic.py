"""Quadratic self-speculation, full and pruned: the tokens of ar for any text and any drafts, in the runs one can count."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nemodiff_trt.contract import Limits
from nemodiff_trt.errors import InvalidInputError
from nemodiff_trt.runtime.options import GenerationOptions
from nemodiff_trt.runtime.rows.acceptance_histogram import AcceptanceHistogram
from nemodiff_trt.runtime.rows.quadratic_layout import group_rows, quadratic_layout
from nemodiff_trt.vocabulary import Mode, Role
from support.decoding import Decoded, Request, decode_with, expected_ar
from support.scripted_session import ScriptedSession, counting, guess_from, random_text, unit

MAX_SEQ_LEN, LARGEST = 48, 6
LIMITS = Limits(max_batch_size=4, max_seq_len=MAX_SEQ_LEN, block_length=16, prefill_chunk=7, quadratic_block_length=LARGEST)
LONGEST_STEP = LARGEST * (LARGEST + 1)
PROMPT = (1, 50, 51)

requests = st.builds(
    Request,
    prompt=st.lists(st.integers(0, 399), min_size=1, max_size=MAX_SEQ_LEN - 1).map(tuple),
    max_new_tokens=st.integers(1, 60),
    ignore_eos=st.booleans(),
    budget=st.none() | st.integers(0, 20),
)
# (block length, groups), as far as steps were built: with fewer groups blocks may be longer.
shapes = st.tuples(st.integers(2, LARGEST), st.none()) | st.integers(1, 4).flatmap(
    lambda groups: st.tuples(st.integers(max(2, groups), LONGEST_STEP // (1 + groups)), st.just(groups))
)


def options(block_length: int, draft_groups: int | None = None) -> GenerationOptions:
    return GenerationOptions(mode=Mode.QUADRATIC, block_length=block_length, draft_groups=draft_groups)


@settings(deadline=None, max_examples=150)
@given(
    seed=st.integers(0, 10**6),
    batch=st.lists(requests, min_size=1, max_size=4),
    accuracy=st.sampled_from([0.0, 0.5, 0.9, 1.0]),
    shape=shapes,
)
def test_equals_ar_for_any_drafts(seed: int, batch: list[Request], accuracy: float, shape: tuple[int, int | None]) -> None:
    next_token = random_text(seed)
    session = ScriptedSession(next_token, guess_from(next_token, seed, accuracy), LIMITS)
    result = decode_with(session, options(*shape), batch)
    assert result.tokens == [expected_ar(next_token, request, MAX_SEQ_LEN) for request in batch]
    for row, sequence in enumerate(result.sequences):
        cached = result.cache.keys[0][row, 0, : result.cache.length[row]].tolist()
        assert cached == [*batch[row].prompt, *sequence.tokens[:-1]]
        assert sequence.accepted_drafts + sequence.cycles >= len(sequence.tokens) - 1 >= sequence.accepted_drafts
        assert sequence.cycles == sequence.forward_passes


def run_alone(accuracy: float, num_tokens: int, shape: tuple[int, int | None]) -> tuple[Decoded, list[int]]:
    """A text that only counts; also the lengths of the runs after prefill."""
    text = counting()
    session = ScriptedSession(text, guess_from(text, 0, accuracy), LIMITS)
    result = decode_with(session, options(*shape), [Request(PROMPT, num_tokens)])
    steps = [step for role, step in session.runs if role is Role.QUADRATIC]
    assert result.sequences[0].step_tokens == sum(steps)
    return result, steps


def test_right_drafts_give_a_block_a_run() -> None:
    _, steps = run_alone(1.0, 42, (5, None))
    # The first run has no drafts and gives one token, every other a whole block.
    assert steps == [1 + 5] + [5 * 6] * 8


def test_wrong_drafts_give_a_token_a_run() -> None:
    result, steps = run_alone(0.0, 12, (4, None))
    assert steps == [1 + 4] + [4 * 5] * 10
    assert result.sequences[0].accepted_drafts == 0


def test_one_group_is_enough_where_all_drafts_are_right() -> None:
    result, steps = run_alone(1.0, 44, (6, 1))
    # It takes one run to learn that blocks are accepted whole; the flat start bets on the seed alone.
    assert result.sequences[0].tokens == list(range(203, 247))
    # Seed; block with a group for the seed alone; seed; from then on the group that continues whole blocks.
    assert steps == [7, 12, 7] + [12] * 6


def test_pruning_computes_fewer_tokens_for_each_emitted_one() -> None:
    full, pruned = (run_alone(0.8, 44, (6, groups))[0].sequences[0] for groups in (None, 2))
    assert full.tokens == pruned.tokens
    assert pruned.step_tokens < 0.7 * full.step_tokens
    assert pruned.forward_passes < 1.5 * full.forward_passes


def test_budget_cut_starts_again_from_the_forced_token() -> None:
    session = ScriptedSession(counting(), None, LIMITS)
    result = decode_with(session, options(4), [Request(PROMPT, 12, budget=5)])
    assert result.tokens == [[203, 204, 205, 206, 207, 13, *range(209, 215)]]
    steps = [step for role, step in session.runs if role is Role.QUADRATIC]
    # Seed 203; 204; four more, of which the last becomes </think>; then the same from there.
    assert steps == [5, 20, 5, 20, 20]


class TestLayout:
    def test_written_out(self) -> None:
        layout = quadratic_layout(2, (0, 1), 2)
        assert layout.position_offset.tolist() == [0, 1, 1, 2, 2, 3]
        assert layout.adapter_rows.tolist() == [0, 0, 1, 1, 1, 1]
        assert layout.step_mask.astype(int).tolist() == [
            [1, 0, 0, 0, 0, 0],
            [1, 1, 0, 0, 0, 0],
            [1, 0, 1, 1, 0, 0],
            [1, 0, 1, 1, 0, 0],
            [1, 1, 0, 0, 1, 1],
            [1, 1, 0, 0, 1, 1],
        ]

    @given(st.integers(1, 6), st.integers(1, 6), st.data())
    def test_groups_see_nothing_of_each_other(self, num_heads: int, block_length: int, data: st.DataObject) -> None:
        groups = data.draw(st.lists(st.integers(0, num_heads - 1), unique=True, max_size=num_heads).map(sorted))
        layout = quadratic_layout(num_heads, groups, block_length)
        assert not layout.step_mask[:num_heads, num_heads:].any()
        for place, head in enumerate(groups):
            masks = group_rows(num_heads, place, block_length)
            seen = np.zeros(len(layout.position_offset), bool)
            seen[: head + 1] = seen[masks] = True
            assert (layout.step_mask[masks] == seen).all()
            assert layout.position_offset[masks].tolist() == list(range(head + 1, head + 1 + block_length))


class TestHistogram:
    def test_starts_flat(self) -> None:
        assert AcceptanceHistogram(5).most_likely(2, 5) == (0, 4) or AcceptanceHistogram(5).most_likely(2, 5) == (0, 1)

    def test_learns_what_happens_and_follows_a_change(self) -> None:
        histogram = AcceptanceHistogram(8)
        for _ in range(50):
            histogram.add(3)
            histogram.add(6)
        assert histogram.most_likely(2, 8) == (3, 6)
        for _ in range(100):
            histogram.add(1)
        assert histogram.most_likely(1, 8) == (1,)

    def test_fewer_heads_end_earlier(self) -> None:
        histogram = AcceptanceHistogram(8)
        for _ in range(10):
            histogram.add(6)
        assert histogram.most_likely(1, 4) == (3,)
        assert histogram.most_likely(9, 3) == (0, 1, 2)

    def test_finds_most_of_what_comes(self) -> None:
        histogram, hits = AcceptanceHistogram(16), 0
        for step in range(400):
            accepted = 15 if unit(1, step) < 0.4 else int(unit(2, step) ** 2 * 15)
            hits += accepted in histogram.most_likely(4, 16)
            histogram.add(accepted)
        # A blind choice of 4 of 16 finds a quarter.
        assert hits > 220


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"block_length": LARGEST + 1}, "block_length"),
        ({"block_length": 15, "draft_groups": 2}, "block_length"),
        ({"block_length": 4, "draft_groups": 5}, "draft_groups"),
    ],
)
def test_what_was_not_built_is_refused(changes: dict[str, int], field: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        GenerationOptions(mode=Mode.QUADRATIC, **changes).check_for(LIMITS, frozenset(Role))
    assert caught.value.field == field
    GenerationOptions(mode=Mode.QUADRATIC, block_length=14, draft_groups=2).check_for(LIMITS, frozenset(Role))


@pytest.mark.parametrize("changes", [{"threshold": 0.5}, {"steps": 3}, {"draft_groups": 0}])
def test_options_of_other_modes_are_refused(changes: dict[str, float]) -> None:
    with pytest.raises(InvalidInputError):
        GenerationOptions(mode=Mode.QUADRATIC, **changes)
    with pytest.raises(InvalidInputError):
        GenerationOptions(mode=Mode.AR, draft_groups=1)

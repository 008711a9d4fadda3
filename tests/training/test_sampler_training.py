"""Labels of denoising states, features, the area that stops training, and resume."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from nemodiff_trt.errors import InvalidInputError
from nemodiff_trt.model import TriModeDecoder
from nemodiff_trt.sampler.network import scalar_features
from nemodiff_trt.training.samples import SampleEncoder
from nemodiff_trt.training.train_sampler import SamplerOptions, area_under_curve, train_sampler
from nemodiff_trt.training.trajectories import careful_target, hasty_states, label_states
from support.small_training import CONFIG, ENCODER, silent

MASK, EOS = 100, 11
OPTIONS = SamplerOptions(num_steps=6, num_chunks=2, chunk_blocks=8, block_lengths=(16, 8), batch_size=4)


def mind_changing_denoiser(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """Surest on the right. Guesses 20 + offset, but 50 at offset 1 while offset 2 is masked."""
    rows, step = blocks.shape
    tokens = (20 + torch.arange(step)).repeat(rows, 1)
    tokens[:, 1] = torch.where(blocks[:, 2] == MASK, 50, tokens[:, 1])
    probabilities = torch.tensor([0.5, 0.2, 0.1, 0.1, 0.05]).repeat(rows, step, 1)
    probabilities[..., 0] += torch.arange(step) / 100
    return torch.stack([tokens + rank for rank in range(5)], -1), probabilities


def test_label_is_whether_the_best_guess_is_what_careful_decoding_commits() -> None:
    first = torch.tensor([[5, MASK, MASK, MASK]])
    target, visited = careful_target(mind_changing_denoiser, first, MASK)
    assert target.tolist() == [[5, 21, 22, 23]]
    states = label_states(visited, target, MASK, EOS)
    assert states.blocks.tolist() == [[5, MASK, MASK, MASK], [5, MASK, MASK, 23], [5, MASK, 22, 23]]
    assert states.counts.tolist() == [[False, True, True, True], [False, True, True, False], [False, True, False, False]]
    asked = [row[counts].tolist() for row, counts in zip(states.kept, states.counts, strict=True)]
    assert asked == [[False, True, True], [False, True], [True]]


def test_nothing_is_asked_behind_the_end() -> None:
    target = torch.tensor([[5, 21, EOS, 23]])
    block = torch.tensor([[5, MASK, MASK, MASK]])
    states = label_states([(block, *mind_changing_denoiser(block))], target, MASK, EOS)
    assert states.counts.tolist() == [[False, True, True, False]]


def test_hasty_way_ends_in_the_target_sooner() -> None:
    first = torch.full((8, 16), MASK)
    first[:, 0] = 5
    target, careful = careful_target(mind_changing_denoiser, first, MASK)
    hasty = hasty_states(mind_changing_denoiser, first, target, MASK, torch.Generator().manual_seed(1))
    assert len(hasty) < len(careful)
    for blocks, _, _ in hasty:
        assert ((blocks == MASK) | (blocks == target)).all()


def test_scalar_features_by_hand() -> None:
    p = [0.5, 0.2, 0.1, 0.1, 0.05]
    entropy = -sum(value * math.log(value) for value in p)
    common = [*p, 0.3, 0.8, entropy]
    features = scalar_features(torch.tensor([[5, MASK, 7]]), torch.tensor([[p] * 3]), MASK)
    spread = 1 - sum(value * value for value in p)
    for position, (masked, place) in enumerate(((0, 0.0), (1, 0.5), (0, 1.0))):
        wanted = [*common, masked, 1 / 3, math.log(0.5), spread, place, math.log(2), math.log(1 - p[0])]
        torch.testing.assert_close(features[0, position], torch.tensor(wanted), rtol=1e-5, atol=1e-6)


def test_area_under_curve_counts_ordered_pairs() -> None:
    scores, kept = torch.tensor([0.1, 0.9, 0.4, 0.5]), torch.tensor([False, True, True, False])
    assert area_under_curve(scores, kept) == pytest.approx(3 / 4)
    with pytest.raises(InvalidInputError, match="both kinds"):
        area_under_curve(scores, torch.ones(4, dtype=torch.bool))


@pytest.fixture
def decoder() -> TriModeDecoder:
    torch.manual_seed(0)
    decoder = TriModeDecoder(CONFIG, 512).eval()
    # Strong enough layers that guesses depend on what is around them.
    with torch.no_grad():
        for name, weight in decoder.named_parameters():
            weight.mul_(4 if "proj" in name else 1)
    return decoder


def short(encoder: SampleEncoder) -> SampleEncoder:
    """Bytes are many tokens; their first ones are enough."""
    return SampleEncoder(lambda text: encoder.encode(text)[:20], encoder.render_prompt, encoder.eos_token_id)


def test_a_stopped_run_goes_on_to_the_same_weights(decoder: TriModeDecoder, tmp_path: Path) -> None:
    encoder = short(ENCODER)

    class StoppedError(Exception):
        pass

    def stop(step: int, entry: dict[str, float]) -> None:
        if entry.get("chunks") == 1:
            raise StoppedError

    with pytest.raises(StoppedError):
        train_sampler(decoder, encoder, OPTIONS, tmp_path / "stopped", stop)
    collected = (tmp_path / "stopped" / "states" / "0000.pt").stat().st_mtime_ns
    again, _ = train_sampler(decoder, encoder, OPTIONS, tmp_path / "stopped", silent)
    assert (tmp_path / "stopped" / "states" / "0000.pt").stat().st_mtime_ns == collected
    at_once, _ = train_sampler(decoder, encoder, OPTIONS, tmp_path / "at_once", silent)
    for name, value in at_once.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], value, rtol=0, atol=0)
    with pytest.raises(InvalidInputError, match="same options"):
        train_sampler(decoder, encoder, dataclasses.replace(OPTIONS, seed=2), tmp_path / "stopped", silent)

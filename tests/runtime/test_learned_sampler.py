"""The runtime's form of the sampler against torch, what is refused, and what it decides in block diffusion."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from nemodiff_trt.errors import InvalidInputError
from nemodiff_trt.plugins.decision_top_k.reference import decision_top_k_reference
from nemodiff_trt.runtime.learned_sampler import LearnedSampler, best_guesses
from nemodiff_trt.runtime.options import GenerationOptions
from nemodiff_trt.runtime.rows.decider import GreedyDecider
from nemodiff_trt.runtime.rows.mask_filling import fix_masks, fix_scored_masks
from nemodiff_trt.runtime.rows.row_decoder import RowOutput
from nemodiff_trt.runtime.sampling import SamplingOptions
from nemodiff_trt.sampler.files import WEIGHTS_FILE, write_sampler
from nemodiff_trt.sampler.network import SamplerNetwork
from nemodiff_trt.sampler.settings import SamplerSettings

MASK = 7
SETTINGS = SamplerSettings(vocab_size=40, mask_token_id=MASK, embedding_size=4, hidden_size=16, ffn_size=24, num_heads=2)


@pytest.fixture
def network() -> SamplerNetwork:
    torch.manual_seed(3)
    network = SamplerNetwork(SETTINGS).eval()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    network.mean.uniform_(-1, 1)
    network.spread.uniform_(0.5, 2)
    return network


@pytest.fixture
def folder(network: SamplerNetwork, tmp_path: Path) -> Path:
    weights = {name: value.detach().numpy() for name, value in network.state_dict().items()}
    write_sampler(tmp_path / "sampler", SETTINGS, weights, {})
    return tmp_path / "sampler"


@pytest.mark.parametrize("step", [2, 9, 32])
def test_scores_are_those_of_torch(network: SamplerNetwork, folder: Path, step: int) -> None:
    rng = np.random.default_rng(step)
    block = rng.integers(0, 40, step)
    block[1:] = np.where(rng.random(step - 1) < 0.6, MASK, block[1:])
    logits = (4 * rng.standard_normal((step, 40))).astype(np.float32)
    tokens, probabilities, _ = decision_top_k_reference(torch.from_numpy(logits)[None], MASK, 5)
    with torch.no_grad():
        wanted = network(torch.from_numpy(block)[None], tokens, probabilities)[0].sigmoid().numpy()
    assert np.ptp(wanted) > 0.001
    np.testing.assert_allclose(LearnedSampler.open(folder).scores(block, logits), wanted, rtol=1e-4, atol=1e-5)


def test_best_guesses_leave_out_the_mask_and_take_the_lowest_of_equals() -> None:
    logits = np.zeros((1, 40), np.float32)
    logits[0, MASK] = logits[0, 30] = 2
    tokens, probabilities = best_guesses(logits, MASK)
    assert tokens.tolist() == [[30, 0, 1, 2, 3]]
    np.testing.assert_allclose(probabilities[0, 0], np.exp(2) / (2 * np.exp(2) + 38), rtol=1e-6)


def test_scores_take_the_place_of_confidence() -> None:
    block = np.array([3, MASK, MASK, MASK])
    output = RowOutput(np.array([0, 11, 12, 13]), np.array([1, 0.99, 0.1, 0.2], np.float32))
    scores = np.array([0.9, 0.1, 0.8, 0.3], np.float32)
    assert fix_scored_masks(block.copy(), output.token, scores, MASK, 0.7) == [(2, 12)]
    assert fix_masks(block.copy(), output, GreedyDecider(), MASK, 0.7, 1, 0) == [(1, 11)]
    # Where no score is enough, the best one is.
    assert fix_scored_masks(block.copy(), output.token, scores, MASK, 0.95) == [(2, 12)]


def test_another_vocabulary_is_refused(folder: Path) -> None:
    sampler = LearnedSampler.open(folder)
    sampler.check_for(40, MASK)
    with pytest.raises(InvalidInputError, match="vocab_size 41"):
        sampler.check_for(41, MASK)
    with pytest.raises(InvalidInputError, match="mask_token_id 8"):
        sampler.check_for(40, 8)


def test_damaged_files_are_refused(folder: Path, network: SamplerNetwork) -> None:
    weights = {name: value.detach().numpy() for name, value in network.state_dict().items()}
    write_sampler(folder, SETTINGS, {**weights, "head.weight": np.zeros((2, 16), np.float32)}, {})
    with pytest.raises(InvalidInputError, match=r"head\.weight"):
        LearnedSampler.open(folder)
    write_sampler(folder, SETTINGS, {name: value for name, value in weights.items() if name != "norm.bias"}, {})
    with pytest.raises(InvalidInputError, match=r"norm\.bias"):
        LearnedSampler.open(folder)
    (folder / WEIGHTS_FILE).write_bytes(b"no tensors")
    with pytest.raises(InvalidInputError, match="sampler"):
        LearnedSampler.open(folder)


@pytest.mark.parametrize(
    "options",
    [
        {"mode": "ar"},
        {"mode": "self_speculation"},
        {"mode": "diffusion", "steps": 4},
        {"mode": "diffusion", "sampling": SamplingOptions(temperature=0.5)},
    ],
    ids=str,
)
def test_only_diffusion_with_a_threshold_takes_it(options: dict[str, object]) -> None:
    with pytest.raises(InvalidInputError, match="learned_sampler"):
        GenerationOptions(learned_sampler=True, **options)  # type: ignore[arg-type]

"""Objective against plain recomputation with the decoder, resume, and a drafter that leaves the verifier alone."""

from __future__ import annotations

import dataclasses
import random
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from nemodiff_trt.errors import InvalidInputError
from nemodiff_trt.model import TriModeDecoder
from nemodiff_trt.training import run_folder
from nemodiff_trt.training.corruption import corrupt
from nemodiff_trt.training.drafter_objective import support_divergence
from nemodiff_trt.training.dual_stream import hidden_states
from nemodiff_trt.training.loop import LoopOptions, run_loop
from nemodiff_trt.training.objective import joint_loss
from nemodiff_trt.training.optimizers import learning_rate_factor
from nemodiff_trt.training.options import TrainingOptions
from nemodiff_trt.training.packing import PackShape, pack_batch
from nemodiff_trt.training.samples import Sample
from nemodiff_trt.training.train_drafter import DrafterOptions, train_drafter
from nemodiff_trt.training.train_model import ModelTrainee, train_model
from support.small_training import CONFIG, ENCODER, silent

OPTIONS = TrainingOptions(num_steps=6, num_rows=2, num_clean=448, num_noisy=448, warmup_steps=2, model=CONFIG)


def decoder_with_random_weights() -> TriModeDecoder:
    torch.manual_seed(0)
    return TriModeDecoder(CONFIG, 256).double().eval()


def run_step(decoder: TriModeDecoder, ids: list[int], causal_length: int, causal: bool) -> torch.Tensor:
    """Logits of `ids` after `causal_length` of them were cached causally."""
    caches = [[torch.zeros(1, 2, 64, 16, dtype=torch.float64) for _ in range(2)] for _ in range(2)]
    length = torch.tensor([causal_length])
    if causal_length:
        _, *caches = decoder(torch.tensor([ids[:causal_length]]), torch.tensor([0]), *caches)
    return decoder(torch.tensor([ids[causal_length:]]), length, *caches, causal)[0][0]


def test_dual_stream_equals_the_steps_it_trains() -> None:
    """Clean positions equal a causal run; a noisy block equals a bidirectional step over the causal cache before it."""
    decoder = decoder_with_random_weights()
    sample = Sample([20, 21, 22], [30, 31, 32, 33, 34, 11])
    shape = PackShape(1, 12, 12, (4,))
    batch = pack_batch(iter([sample] * 9), random.Random(3), shape, 11)
    corruption = corrupt(batch, 100, 0.5, torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = decoder.diffusion_head(
            hidden_states(decoder, corruption.ids, batch.position, batch.visibility(), batch.num_clean)
        )[0]
        tokens = sample.prompt + sample.answer
        assert torch.allclose(logits[: len(tokens)], run_step(decoder, tokens, 0, causal=True), atol=1e-10)
        noisy_starts = batch.block_start[0, 12:]
        for start in sorted({int(s) for s, index in zip(noisy_starts, batch.sample[0, 12:], strict=True) if index == 0}):
            columns = 12 + torch.nonzero((noisy_starts == start) & (batch.sample[0, 12:] == 0))[:, 0]
            block = corruption.ids[0, columns].tolist()
            wanted = run_step(decoder, tokens[:start] + block, start, causal=False)
            assert torch.allclose(logits[columns], wanted, atol=1e-10)


def test_joint_loss_is_the_weighted_sum_of_both_cross_entropies() -> None:
    decoder = decoder_with_random_weights()
    batch = pack_batch(iter([Sample([20, 21], [30, 31, 32, 11])] * 40), random.Random(0), PackShape(3, 24, 24, (4,)), 11)
    corruption = corrupt(batch, 100, 0.05, torch.Generator().manual_seed(2))
    loss = joint_loss(decoder, batch, corruption, diffusion_weight=0.3)
    with torch.no_grad():
        hidden = hidden_states(decoder, corruption.ids, batch.position, batch.visibility(), batch.num_clean)
        negative = -decoder.diffusion_head(hidden).log_softmax(-1).gather(-1, batch.target[..., None])[..., 0]
    is_clean = torch.arange(48) < 24
    causal = negative[batch.is_answer & is_clean].mean()
    diffusion = (negative * corruption.weight)[:, 24:].sum() / (batch.is_answer & ~is_clean).sum()
    # The loss takes its cross-entropy in fp32.
    assert loss.autoregressive == pytest.approx(float(causal), rel=1e-5)
    assert loss.diffusion == pytest.approx(float(diffusion), rel=1e-5)
    assert loss.total.item() == pytest.approx(float(causal + 0.3 * diffusion), rel=1e-5)


def test_training_lowers_both_losses() -> None:
    trainee = ModelTrainee(ENCODER, dataclasses.replace(OPTIONS, learning_rate=0.01))
    losses = [trainee.train_step(step) for step in range(12)]
    for name in ("autoregressive", "diffusion"):
        assert losses[-1][name] < 0.8 * losses[0][name]


def test_a_run_stopped_and_resumed_ends_with_the_same_weights(tmp_path: Path) -> None:
    whole = train_model(ENCODER, OPTIONS, tmp_path / "whole", silent).state_dict()

    class KilledError(Exception):
        """The run dies here."""

    def kill(step: int, entry: dict[str, float]) -> None:
        raise KilledError

    loop = LoopOptions(OPTIONS.num_steps, OPTIONS.warmup_steps, OPTIONS.decay_fraction, log_every=5, save_every=3)
    with pytest.raises(KilledError):
        run_loop(ModelTrainee(ENCODER, OPTIONS), loop, tmp_path / "resumed", kill)
    assert run_folder.load_state(tmp_path / "resumed")["step"] == 3  # type: ignore[index]
    resumed = ModelTrainee(ENCODER, OPTIONS)
    run_loop(resumed, loop, tmp_path / "resumed", silent)
    for name, value in resumed.decoder.state_dict().items():
        assert torch.equal(value, whole[name]), name
    assert [entry["step"] for entry in run_folder.read_log(tmp_path / "resumed")] == [5, 6]


def test_resuming_with_other_options_is_refused(tmp_path: Path) -> None:
    train_model(ENCODER, dataclasses.replace(OPTIONS, num_steps=1), tmp_path, silent)
    with pytest.raises(InvalidInputError, match="output"):
        train_model(ENCODER, dataclasses.replace(OPTIONS, num_steps=2, seed=2), tmp_path, silent)


def test_drafter_training_changes_the_adapter_and_nothing_else(tmp_path: Path) -> None:
    torch.manual_seed(0)
    decoder = TriModeDecoder(CONFIG, 512)
    before = {name: value.clone() for name, value in decoder.state_dict().items()}
    options = DrafterOptions(
        num_steps=2, rank=4, alpha=16, num_rows=2, num_clean=448, num_noisy=448, block_lengths=(8,), warmup_steps=1
    )
    train_drafter(decoder, ENCODER, options, tmp_path, silent)
    after = decoder.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    adapter = {name: value for name, value in after.items() if name not in before}
    assert len(adapter) == 2 * CONFIG.num_hidden_layers
    assert all(float(value.abs().sum()) > 0 for value in adapter.values())


def test_divergence_is_zero_for_equal_logits_and_grows_with_disagreement() -> None:
    verifier = torch.randn(5, 40, generator=torch.Generator().manual_seed(0))
    other = verifier + torch.randn(5, 40, generator=torch.Generator().manual_seed(1))
    assert torch.allclose(support_divergence(verifier, verifier), torch.zeros(5), atol=1e-6)
    small, large = support_divergence(verifier, 0.5 * (verifier + other)), support_divergence(verifier, other)
    assert (small > 0).all()
    assert (large > small).all()


def test_schedule_warms_up_holds_and_decays_to_almost_zero() -> None:
    factors = [learning_rate_factor(step, 100, 10, 0.4) for step in range(100)]
    assert factors[:10] == pytest.approx([0.1 * (step + 1) for step in range(10)])
    assert factors[10:61] == [1.0] * 51
    assert all(later < earlier for earlier, later in pairwise(factors[60:]))
    assert factors[-1] == pytest.approx(0.025)


@pytest.mark.parametrize(
    ("field", "value"),
    [("num_steps", 0), ("block_lengths", (1,)), ("block_lengths", (64,)), ("min_mask_rate", 0.0), ("decay_fraction", 0.0)],
)
def test_bad_options_are_named(field: str, value: object) -> None:
    with pytest.raises(InvalidInputError, match=field):
        dataclasses.replace(OPTIONS, **{field: value})

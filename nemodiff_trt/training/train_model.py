"""Train the base model with the joint objective; resumable at any saved step."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable
from pathlib import Path

import torch

from nemodiff_trt.errors import InvalidInputError
from nemodiff_trt.model import TriModeDecoder
from nemodiff_trt.training import run_folder
from nemodiff_trt.training.corruption import corrupt
from nemodiff_trt.training.objective import JointLoss, joint_loss
from nemodiff_trt.training.optimizers import build_optimizers, learning_rate_factor, set_learning_rate
from nemodiff_trt.training.options import TrainingOptions
from nemodiff_trt.training.packing import PackShape, pack_batch
from nemodiff_trt.training.samples import SampleEncoder, training_samples

# Rotary rows; training rows are shorter.
MAX_POSITIONS = 1024
LOSS_SERIES = ("autoregressive", "diffusion")

Progress = Callable[[int, dict[str, float]], None]


def initialise_weights(decoder: TriModeDecoder, seed: int) -> None:
    """Normal weights of 1/sqrt(fan in); zero output projections, so that every layer starts as the identity."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in decoder.named_parameters():
        if parameter.ndim != 2:
            continue
        is_output = name.endswith(("o_proj.weight", "down_proj.weight"))
        scale = 0.0 if is_output else parameter.shape[1] ** -0.5
        with torch.no_grad():
            parameter.normal_(0.0, 1.0, generator=generator).mul_(scale)


def train_model(
    encoder: SampleEncoder, options: TrainingOptions, run_dir: Path, progress: Progress, log_every: int = 20
) -> TriModeDecoder:
    """Run `options.num_steps` steps, saving state every 25 log entries, and return the trained decoder.

    A run folder with saved state is resumed; its options must be the same except for `num_steps`.
    """
    decoder = TriModeDecoder(options.model, MAX_POSITIONS)
    initialise_weights(decoder, options.seed)
    optimizers = build_optimizers(decoder, options)
    first_step = _resume(decoder, optimizers, options, run_dir)
    sums: dict[str, float] = {}
    for step in range(first_step, options.num_steps):
        factor = learning_rate_factor(step, options.num_steps, options.warmup_steps, options.decay_fraction)
        set_learning_rate(optimizers, factor)
        loss = _train_step(decoder, optimizers, encoder, options, step)
        for name in ("autoregressive", "diffusion", "autoregressive_accuracy", "diffusion_accuracy"):
            sums[name] = sums.get(name, 0.0) + getattr(loss, name)
        if (step + 1) % log_every == 0 or step + 1 == options.num_steps:
            num_summed = (step % log_every) + 1
            entry = {"step": step + 1, **{name: value / num_summed for name, value in sums.items()}, "learning_rate": factor}
            run_folder.append_log(run_dir, entry)
            progress(step + 1, entry)
            sums = {}
        if (step + 1) % (25 * log_every) == 0 or step + 1 == options.num_steps:
            _save(decoder, optimizers, options, run_dir, step + 1)
    run_folder.plot_log(run_dir, LOSS_SERIES, "joint training")
    return decoder.eval()


def _train_step(
    decoder: TriModeDecoder,
    optimizers: tuple[torch.optim.Optimizer, ...],
    encoder: SampleEncoder,
    options: TrainingOptions,
    step: int,
) -> JointLoss:
    """One batch, which depends on seed and step alone."""
    shape = PackShape(options.num_rows, options.num_clean, options.num_noisy, options.block_lengths)
    samples = training_samples(encoder, options.seed, step)
    batch = pack_batch(samples, random.Random(f"{options.seed}/{step}/blocks"), shape, options.model.eos_token_id)
    generator = torch.Generator().manual_seed(options.seed * 1_000_003 + step)
    corruption = corrupt(batch, options.model.mask_token_id, options.min_mask_rate, generator)
    with torch.autocast("cpu", torch.bfloat16):
        loss = joint_loss(decoder, batch, corruption, options.diffusion_weight)
    torch.autograd.backward(loss.total)
    torch.nn.utils.clip_grad_norm_(decoder.parameters(), 1.0)
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad()
    return loss


def _fingerprint(options: TrainingOptions) -> str:
    """Options that a resumed run may not change."""
    fixed = dataclasses.asdict(options)
    del fixed["num_steps"]
    return repr(sorted(fixed.items()))


def _save(
    decoder: TriModeDecoder, optimizers: tuple[torch.optim.Optimizer, ...], options: TrainingOptions, run_dir: Path, step: int
) -> None:
    state = {
        "step": step,
        "options": _fingerprint(options),
        "weights": decoder.state_dict(),
        "optimizers": [optimizer.state_dict() for optimizer in optimizers],
    }
    run_folder.save_state(run_dir, state)


def _resume(
    decoder: TriModeDecoder, optimizers: tuple[torch.optim.Optimizer, ...], options: TrainingOptions, run_dir: Path
) -> int:
    """Load saved state if there is any; returns the step to go on with."""
    run_dir.mkdir(parents=True, exist_ok=True)
    state = run_folder.load_state(run_dir)
    if state is None:
        run_folder.truncate_log(run_dir, 0)
        return 0
    if state["options"] != _fingerprint(options):
        raise InvalidInputError("output", str(run_dir), "a folder of a run with the same options, or an empty one")
    decoder.load_state_dict(state["weights"])
    for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(saved)
    run_folder.truncate_log(run_dir, state["step"] + 1)
    return int(state["step"])

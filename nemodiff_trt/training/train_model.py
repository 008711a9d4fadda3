"""Train the base model with the joint objective; resumable at any saved step."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch

from nemodiff_trt.model import TriModeDecoder
from nemodiff_trt.training import run_folder
from nemodiff_trt.training.corruption import corrupt
from nemodiff_trt.training.dual_stream import choose_forward
from nemodiff_trt.training.loop import LoopOptions, Progress, run_loop
from nemodiff_trt.training.objective import joint_loss
from nemodiff_trt.training.optimizers import build_optimizers
from nemodiff_trt.training.options import TrainingOptions, options_fingerprint
from nemodiff_trt.training.packing import PackShape, pack_batch
from nemodiff_trt.training.samples import SampleEncoder, training_samples

# Rotary rows; training rows are shorter.
MAX_POSITIONS = 1024
LOSS_SERIES = ("autoregressive", "diffusion")
LOG_EVERY = 20
SAVE_EVERY = 500


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


class ModelTrainee:
    """The whole decoder under the joint objective."""

    def __init__(self, encoder: SampleEncoder, options: TrainingOptions) -> None:
        self.options, self.encoder = options, encoder
        self.decoder = TriModeDecoder(options.model, MAX_POSITIONS)
        initialise_weights(self.decoder, options.seed)
        self.optimizers = build_optimizers(self.decoder, options)
        self.forward = choose_forward(options.compiled)
        self.fingerprint = options_fingerprint(options)

    def train_step(self, step: int) -> dict[str, float]:
        options = self.options
        shape = PackShape(options.num_rows, options.num_clean, options.num_noisy, options.block_lengths)
        samples = training_samples(self.encoder, options.seed, step)
        batch = pack_batch(samples, random.Random(f"{options.seed}/{step}/blocks"), shape, options.model.eos_token_id)
        generator = torch.Generator().manual_seed(options.seed * 1_000_003 + step)
        corruption = corrupt(batch, options.model.mask_token_id, options.min_mask_rate, generator)
        with torch.autocast("cpu", torch.bfloat16):
            loss = joint_loss(self.decoder, batch, corruption, options.diffusion_weight, self.forward)
        torch.autograd.backward(loss.total)
        torch.nn.utils.clip_grad_norm_(self.decoder.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        return {
            "autoregressive": loss.autoregressive,
            "diffusion": loss.diffusion,
            "autoregressive_accuracy": loss.autoregressive_accuracy,
            "diffusion_accuracy": loss.diffusion_accuracy,
        }

    def weights(self) -> dict[str, Any]:
        return self.decoder.state_dict()

    def load_weights(self, weights: dict[str, Any]) -> None:
        self.decoder.load_state_dict(weights)


def train_model(encoder: SampleEncoder, options: TrainingOptions, run_dir: Path, progress: Progress) -> TriModeDecoder:
    """Run `options.num_steps` steps and return the trained decoder.

    A run folder with saved state is resumed; its options must be the same except for `num_steps`.
    """
    trainee = ModelTrainee(encoder, options)
    loop = LoopOptions(options.num_steps, options.warmup_steps, options.decay_fraction, LOG_EVERY, SAVE_EVERY)
    run_loop(trainee, loop, run_dir, progress)
    run_folder.plot_log(run_dir, LOSS_SERIES, "joint training")
    return trainee.decoder.eval()

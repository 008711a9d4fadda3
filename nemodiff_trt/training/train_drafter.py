"""Train the o_proj draft adapter against the frozen model; resumable at any saved step."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from nemodiff_trt.errors import InvalidInputError
from nemodiff_trt.model import LowRankAdapter, TriModeDecoder
from nemodiff_trt.training import run_folder
from nemodiff_trt.training.drafter_objective import drafter_loss
from nemodiff_trt.training.dual_stream import choose_forward
from nemodiff_trt.training.loop import LoopOptions, Progress, run_loop
from nemodiff_trt.training.optimizers import Optimizers
from nemodiff_trt.training.options import options_fingerprint
from nemodiff_trt.training.packing import PackShape, pack_batch
from nemodiff_trt.training.samples import SampleEncoder, training_samples

LOSS_SERIES = ("divergence", "cross_entropy")
LOG_EVERY = 10
SAVE_EVERY = 100


@dataclass(frozen=True, slots=True)
class DrafterOptions:
    """Training of the draft adapter.

    Args:
        num_steps: optimiser steps.
        seed: of adapter, data and samples.
        rank, alpha: of the low-rank branch; its scale is alpha / rank.
        num_rows, num_clean, num_noisy: tokens of one batch, see `packing`.
        block_lengths: each batch draws one; long blocks leave an adapter the most to gain.
        greedy_share: part of the blocks drafted by argmax, the others are sampled.
        learning_rate: of AdamW.
        warmup_steps: linear warm-up; the last `decay_fraction` of the run decays linearly to zero.
        compiled: fuse the forward with torch.compile.
    """

    num_steps: int = 600
    seed: int = 1
    rank: int = 32
    alpha: int = 128
    num_rows: int = 12
    num_clean: int = 256
    num_noisy: int = 256
    block_lengths: tuple[int, ...] = (16, 32, 32)
    greedy_share: float = 0.1
    learning_rate: float = 1e-3
    warmup_steps: int = 20
    decay_fraction: float = 0.5
    compiled: bool = False

    def __post_init__(self) -> None:
        for name in ("num_steps", "rank", "alpha", "num_rows", "num_clean", "num_noisy", "warmup_steps"):
            if getattr(self, name) < 1:
                raise InvalidInputError(name, getattr(self, name), "a positive integer")
        if not self.block_lengths or min(self.block_lengths) < 2:
            raise InvalidInputError("block_lengths", self.block_lengths, "lengths of at least 2")
        if not 0 <= self.greedy_share <= 1:
            raise InvalidInputError("greedy_share", self.greedy_share, "a number from 0 to 1")


def attach_trainable_adapter(decoder: TriModeDecoder, options: DrafterOptions) -> list[torch.nn.Parameter]:
    """Freeze the model, attach a zero adapter with random A, and return its parameters."""
    decoder.requires_grad_(False)
    decoder.attach_adapter(options.rank, options.alpha / options.rank)
    generator = torch.Generator().manual_seed(options.seed)
    parameters: list[torch.nn.Parameter] = []
    for module in decoder.modules():
        if isinstance(module, LowRankAdapter):
            with torch.no_grad():
                module.lora_A.weight.normal_(0.0, 1.0, generator=generator).mul_(module.lora_A.in_features**-0.5)
            module.requires_grad_(True)
            parameters += list(module.parameters())
    return parameters


class DrafterTrainee:
    """The adapter of a frozen decoder."""

    def __init__(self, decoder: TriModeDecoder, encoder: SampleEncoder, options: DrafterOptions) -> None:
        self.decoder, self.encoder, self.options = decoder, encoder, options
        parameters = attach_trainable_adapter(decoder, options)
        adamw = torch.optim.AdamW(parameters, lr=options.learning_rate, betas=(0.9, 0.95), weight_decay=0.0)
        self.optimizers: Optimizers = (adamw,)
        self.forward = choose_forward(options.compiled)
        self.fingerprint = options_fingerprint(options)

    def train_step(self, step: int) -> dict[str, float]:
        options = self.options
        rng = random.Random(f"{options.seed}/{step}/draft")
        block_length = rng.choice(options.block_lengths)
        shape = PackShape(options.num_rows, options.num_clean, options.num_noisy, (block_length,))
        # Own stream of data: the model's own training used the plain seed.
        samples = training_samples(self.encoder, options.seed + 1_000_000, step)
        batch = pack_batch(samples, rng, shape, self.decoder.config.eos_token_id)
        generator = torch.Generator().manual_seed(options.seed * 1_000_003 + step)
        with torch.autocast("cpu", torch.bfloat16):
            loss = drafter_loss(self.decoder, batch, block_length, options.greedy_share, generator, self.forward)
        torch.autograd.backward(loss.total)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        return {"divergence": loss.divergence, "cross_entropy": loss.cross_entropy, "mean_accepted": loss.mean_accepted}

    def weights(self) -> dict[str, Any]:
        return {name: value for name, value in self.decoder.state_dict().items() if ".adapter." in name}

    def load_weights(self, weights: dict[str, Any]) -> None:
        self.decoder.load_state_dict(weights, strict=False)


def train_drafter(
    decoder: TriModeDecoder, encoder: SampleEncoder, options: DrafterOptions, run_dir: Path, progress: Progress
) -> TriModeDecoder:
    """Train the adapter of `decoder` in place and return it; every other weight stays as it was."""
    trainee = DrafterTrainee(decoder, encoder, options)
    loop = LoopOptions(options.num_steps, options.warmup_steps, options.decay_fraction, LOG_EVERY, SAVE_EVERY)
    run_loop(trainee, loop, run_dir, progress)
    run_folder.plot_log(run_dir, LOSS_SERIES, "draft adapter")
    return decoder.eval()

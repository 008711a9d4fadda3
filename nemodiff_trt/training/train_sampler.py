"""Train the learned sampler of a frozen model: collect denoising states, then fit; both go on where they were stopped."""

from __future__ import annotations

import random
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

from nemodiff_trt.atomic_file import replaced_file
from nemodiff_trt.errors import InvalidInputError
from nemodiff_trt.model import TriModeDecoder
from nemodiff_trt.sampler.network import SamplerNetwork, scalar_features
from nemodiff_trt.sampler.settings import SamplerSettings
from nemodiff_trt.training import run_folder
from nemodiff_trt.training.loop import LoopOptions, Progress, run_loop
from nemodiff_trt.training.optimizers import Optimizers
from nemodiff_trt.training.options import options_fingerprint
from nemodiff_trt.training.samples import SampleEncoder
from nemodiff_trt.training.trajectories import States, collect

LOG_EVERY, SAVE_EVERY = 50, 100
STATES_FOLDER = "states"
# Every so many chunks one is kept for choosing the weights.
HELD_OUT_EVERY = 8
WARMUP_STEPS, DECAY_FRACTION = 50, 0.5
# Keeps a scalar that never changes from being divided by nothing.
LEAST_SPREAD = 1e-3


@dataclass(frozen=True, slots=True)
class SamplerOptions:
    """Training of a sampler.

    Args:
        num_steps: optimiser steps.
        seed: of data, weights and batches.
        num_chunks: files of states; one in eight is held out.
        chunk_blocks: blocks denoised for a chunk.
        block_lengths: of the chunks in turn.
        batch_size: states of a step, all of one chunk.
        learning_rate: of AdamW.
    """

    num_steps: int = 3000
    seed: int = 1
    num_chunks: int = 24
    chunk_blocks: int = 64
    block_lengths: tuple[int, ...] = (32, 16, 8)
    batch_size: int = 128
    learning_rate: float = 1e-3

    def __post_init__(self) -> None:
        for name in ("num_steps", "num_chunks", "chunk_blocks", "batch_size"):
            if getattr(self, name) < 1:
                raise InvalidInputError(name, getattr(self, name), "a positive integer")
        if self.num_chunks < 2:
            raise InvalidInputError("num_chunks", self.num_chunks, "at least 2: one is held out")
        if not self.block_lengths or min(self.block_lengths) < 2:
            raise InvalidInputError("block_lengths", self.block_lengths, "lengths of at least 2")


def collect_chunk(
    decoder: TriModeDecoder, encoder: SampleEncoder, options: SamplerOptions, run_dir: Path, index: int
) -> States:
    """Read chunk `index` of the run, or collect and write it. It depends on seed and index alone."""
    length = options.block_lengths[index % len(options.block_lengths)]
    key = f"{options.seed}/{options.chunk_blocks}/{length}/{index}/sampler"
    path = run_dir / STATES_FOLDER / f"{index:04d}.pt"
    if path.exists():
        saved: dict[str, Any] = torch.load(path, weights_only=True)
        if saved["key"] != key:
            raise InvalidInputError("output", str(run_dir), "the folder of a run with the same options, or a new one")
        return States(**saved["states"])
    states = collect(decoder, encoder, options.chunk_blocks, length, key)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replaced_file(path) as partial:
        torch.save({"key": key, "states": asdict(states)}, partial)
    return states


def area_under_curve(scores: torch.Tensor, kept: torch.Tensor) -> float:
    """Probability that a kept guess scores above another, from scores fp32 [N] and kept bool [N]; ties as sorted."""
    ranks = torch.empty(len(scores), dtype=torch.float64)
    ranks[scores.argsort()] = torch.arange(1, len(scores) + 1, dtype=torch.float64)
    num_kept = int(kept.sum())
    num_others = len(kept) - num_kept
    if not num_kept or not num_others:
        raise InvalidInputError("kept", num_kept, "both kinds of guesses")
    return float((ranks[kept].sum() - num_kept * (num_kept + 1) / 2) / (num_kept * num_others))


class SamplerTrainee:
    """A sampler, its collected states, and the best weights so far by the area under the curve of held-out states."""

    def __init__(self, network: SamplerNetwork, chunks: list[States], options: SamplerOptions) -> None:
        self.network, self.options = network, options
        self.held_out = chunks[::HELD_OUT_EVERY]
        self.chunks = [chunk for index, chunk in enumerate(chunks) if index % HELD_OUT_EVERY]
        self.best_area, self.best = 0.0, {name: value.clone() for name, value in network.state_dict().items()}
        adamw = torch.optim.AdamW(network.parameters(), lr=options.learning_rate, weight_decay=0.1)
        self.optimizers: Optimizers = (adamw,)
        self.fingerprint = options_fingerprint(options)

    def train_step(self, step: int) -> dict[str, float]:
        options = self.options
        self.network.train()
        # Dropout is drawn from the step number too, so that a resumed run is the same run.
        torch.manual_seed(options.seed * 1_000_003 + step)
        rng = random.Random(f"{options.seed}/{step}/sampler")
        chunk = rng.choices(self.chunks, [len(chunk.blocks) for chunk in self.chunks])[0]
        picked = torch.tensor(rng.choices(range(len(chunk.blocks)), k=options.batch_size))
        counts = chunk.counts[picked]
        logits = self.network(chunk.blocks[picked], chunk.tokens[picked], chunk.probabilities[picked])
        loss = functional.binary_cross_entropy_with_logits(logits[counts], chunk.kept[picked][counts].float())
        torch.autograd.backward(loss)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        if (step + 1) % SAVE_EVERY == 0 or step + 1 == options.num_steps:
            self._keep_best()
        return {"cross_entropy": loss.item(), "held_out_area": self.best_area}

    def _keep_best(self) -> None:
        area = held_out_area(self.network, self.held_out)
        if area > self.best_area:
            self.best_area, self.best = area, {name: value.clone() for name, value in self.network.state_dict().items()}

    def weights(self) -> dict[str, Any]:
        return {"now": self.network.state_dict(), "best": self.best, "best_area": self.best_area}

    def load_weights(self, weights: dict[str, Any]) -> None:
        self.network.load_state_dict(weights["now"])
        self.best, self.best_area = weights["best"], weights["best_area"]


def held_out_area(network: SamplerNetwork, chunks: list[States]) -> float:
    """Area under the curve of `network` over the counted positions of `chunks`."""
    network.eval()
    with torch.no_grad():
        scores = torch.cat([network(chunk.blocks, chunk.tokens, chunk.probabilities)[chunk.counts] for chunk in chunks])
    return area_under_curve(scores, torch.cat([chunk.kept[chunk.counts] for chunk in chunks]))


def standardise(network: SamplerNetwork, chunks: list[States]) -> None:
    """Store mean and spread of the scalars at the counted positions."""
    mask = network.settings.mask_token_id
    scalars = torch.cat([scalar_features(chunk.blocks, chunk.probabilities, mask)[chunk.counts] for chunk in chunks])
    network.mean.copy_(scalars.mean(0))
    network.spread.copy_(scalars.std(0).clamp_min(LEAST_SPREAD))


def train_sampler(
    decoder: TriModeDecoder, encoder: SampleEncoder, options: SamplerOptions, run_dir: Path, progress: Progress
) -> tuple[SamplerNetwork, float]:
    """Train a sampler of `decoder`; returns the best one and its area under the curve on held-out states."""
    chunks = []
    for index in range(options.num_chunks):
        chunks.append(collect_chunk(decoder, encoder, options, run_dir, index))
        progress(0, {"chunks": float(index + 1)})
    torch.manual_seed(options.seed)
    network = SamplerNetwork(SamplerSettings(decoder.config.vocab_size, decoder.config.mask_token_id))
    standardise(network, [chunk for index, chunk in enumerate(chunks) if index % HELD_OUT_EVERY])
    trainee = SamplerTrainee(network, chunks, options)
    run_loop(trainee, LoopOptions(options.num_steps, WARMUP_STEPS, DECAY_FRACTION, LOG_EVERY, SAVE_EVERY), run_dir, progress)
    run_folder.plot_log(run_dir, ("cross_entropy",), "learned sampler")
    network.load_state_dict(trainee.best)
    return network.eval(), trainee.best_area

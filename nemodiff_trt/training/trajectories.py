"""Denoising states of a frozen model, labelled with what a careful decoding finally commits.

Method: technical report, arXiv 2607.05722, 3.2 and appendix A. The target of a block is what committing the one most confident
token per step ends in. States come from that decoding and from a hasty one that commits many right guesses at once.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor

from nemodiff_trt.model import TriModeDecoder
from nemodiff_trt.sampler.settings import NUM_PROBABILITIES
from nemodiff_trt.training.samples import SampleEncoder, training_samples

# Part of the right guesses that the hasty decoding commits at a step.
HASTE = 0.7

# Blocks int64 [N,S] -> best tokens int64 [N,S,5] and their probabilities fp32 [N,S,5].
Denoiser = Callable[[Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True, slots=True)
class States:
    """Denoising states: `blocks` [N,S], `tokens` and `probabilities` [N,S,5], `kept` [N,S], `counts` [N,S].

    `kept` says whether the best guess is the target's token; `counts` where that is asked: at masks up to the target's end.
    """

    blocks: Tensor
    tokens: Tensor
    probabilities: Tensor
    kept: Tensor
    counts: Tensor


def careful_target(denoise: Denoiser, blocks: Tensor, mask_token_id: int) -> tuple[Tensor, list[tuple[Tensor, Tensor, Tensor]]]:
    """Commit the most confident masked position per step, ties to the lowest, until no mask is left.

    Returns the target [N,S] and the (blocks, tokens, probabilities) of every step. All blocks have equally many masks.
    """
    blocks, visited = blocks.clone(), []
    rows = torch.arange(len(blocks))
    while (masked := blocks == mask_token_id).any():
        tokens, probabilities = denoise(blocks)
        visited.append((blocks.clone(), tokens, probabilities))
        best = torch.where(masked, probabilities[..., 0], -1.0).argmax(-1)
        blocks[rows, best] = tokens[rows, best, 0]
    return blocks, visited


def hasty_states(
    denoise: Denoiser, blocks: Tensor, target: Tensor, mask_token_id: int, generator: torch.Generator
) -> list[tuple[Tensor, Tensor, Tensor]]:
    """States on a shorter way to `target`: most right guesses at once, and the target's token where it is surest."""
    blocks, visited = blocks.clone(), []
    rows = torch.arange(len(blocks))
    while (masked := blocks == mask_token_id).any():
        tokens, probabilities = denoise(blocks)
        visited.append((blocks.clone(), tokens, probabilities))
        chosen = masked & (tokens[..., 0] == target) & (torch.rand(blocks.shape, generator=generator) < HASTE)
        best = torch.where(masked, probabilities[..., 0], -1.0).argmax(-1)
        chosen[rows, best] |= masked.any(-1)
        blocks = torch.where(chosen, target, blocks)
    return visited


def label_states(visited: list[tuple[Tensor, Tensor, Tensor]], target: Tensor, mask_token_id: int, eos_token_id: int) -> States:
    """Compare every visited state with the target. Nothing is asked behind the target's first end of sequence."""
    blocks, tokens, probabilities = (torch.cat(parts) for parts in zip(*visited, strict=True))
    targets = target.repeat(len(visited), 1)
    ends = (targets == eos_token_id).long()
    counts = (blocks == mask_token_id) & (ends.cumsum(-1) - ends == 0)
    useful = counts.any(-1)
    kept = tokens[..., 0] == targets
    return States(blocks[useful], tokens[useful], probabilities[useful], kept[useful], counts[useful])


def model_denoiser(
    decoder: TriModeDecoder, encoder: SampleEncoder, num_blocks: int, block_length: int, rng: random.Random
) -> tuple[Denoiser, Tensor]:
    """A denoiser behind random prefixes of training answers, and its first blocks [N,S]: the seed, then masks."""
    config = decoder.config
    samples = list(islice(training_samples(encoder, rng.randrange(1 << 40), 0), num_blocks))
    starts = [rng.randrange(max(len(sample.answer) - 1, 1)) for sample in samples]
    texts = [sample.prompt + sample.answer[: start + 1] for sample, start in zip(samples, starts, strict=True)]
    length = torch.tensor([len(text) - 1 for text in texts])
    longest = int(length.max())
    ids = torch.tensor([text[:-1] + [0] * (longest - len(text) + 1) for text in texts])
    shape = (num_blocks, config.num_key_value_heads, longest + block_length, config.head_dim)
    empty = [torch.zeros(shape) for _ in range(config.num_hidden_layers)]
    with torch.no_grad():
        _, keys, values = decoder(ids, torch.zeros_like(length), empty, empty)
    blocks = torch.full((num_blocks, block_length), config.mask_token_id)
    blocks[:, 0] = torch.tensor([text[-1] for text in texts])

    def denoise(blocks: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            logits = decoder(blocks, length, keys, values, causal=False)[0].float()
            rest = logits.clone()
            rest[..., config.mask_token_id] = -torch.inf
            best, tokens = rest.topk(NUM_PROBABILITIES)
            return tokens, (best - logits.logsumexp(-1, keepdim=True)).exp()

    return denoise, blocks


def collect(decoder: TriModeDecoder, encoder: SampleEncoder, num_blocks: int, block_length: int, seed: str) -> States:
    """All states of `num_blocks` blocks of training problems; `seed` decides everything."""
    rng = random.Random(seed)
    denoise, blocks = model_denoiser(decoder, encoder, num_blocks, block_length, rng)
    mask = decoder.config.mask_token_id
    target, visited = careful_target(denoise, blocks, mask)
    generator = torch.Generator().manual_seed(rng.randrange(1 << 40))
    visited += hasty_states(denoise, blocks, target, mask, generator)
    return label_states(visited, target, mask, decoder.config.eos_token_id)

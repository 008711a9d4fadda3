"""Pack samples into rows of a clean and a noisy stream, and say who may see whom (tech report arXiv 2607.05722, section 2).

A row holds whole samples. The clean stream carries prompt and answer; the noisy stream carries the answer's blocks only,
because nothing is predicted elsewhere. The last block of an answer is filled up with end-of-sequence targets: a block is
always full in decoding, and a shorter one would tell the model where the answer ends.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from nemodiff_trt.training.samples import Sample

NO_SAMPLE = -1
# Samples that fit nowhere before a batch is closed; each is dropped, so few, or long answers would grow rare.
MAX_MISFITS = 3


@dataclass(frozen=True, slots=True)
class PackedBatch:
    """Rows of `num_clean + num_noisy` tokens; all tensors [B,T], T = clean then noisy.

    `target` is the token a position is asked for (next token in the clean stream, own token in the noisy one), `is_answer` says
    where that counts. `sample` is the index of the sample within its row, -1 on padding. `is_seed` marks the first position of
    a block, which decoding always knows.
    """

    ids: Tensor
    position: Tensor
    sample: Tensor
    block_start: Tensor
    target: Tensor
    is_answer: Tensor
    is_seed: Tensor
    num_clean: int

    def visibility(self) -> Tensor:
        """Bool mask [B,T,T], True where the query (second axis) sees the key (third axis).

        clean -> clean: causal. noisy -> clean: everything before its own block. noisy -> noisy: its own block, both directions.
        """
        num_clean = self.num_clean
        same = (self.sample[:, :, None] == self.sample[:, None, :]) & (self.sample[:, None, :] != NO_SAMPLE)
        seen = torch.zeros_like(same)
        position, start = self.position, self.block_start
        clean, noisy = slice(0, num_clean), slice(num_clean, None)
        seen[:, clean, clean] = position[:, None, clean] <= position[:, clean, None]
        seen[:, noisy, clean] = position[:, None, clean] < start[:, noisy, None]
        seen[:, noisy, noisy] = start[:, None, noisy] == start[:, noisy, None]
        # Padding sees itself: a query without keys has no defined attention.
        return (seen & same) | torch.eye(same.shape[-1], dtype=torch.bool)


def block_starts(sample: Sample, block_length: int, phase: int) -> list[tuple[int, int]]:
    """Spans (start, stop) of answer indices covered by each block; the first is cut short by `phase` tokens."""
    spans, start, stop = [], 0, block_length - phase
    while start < len(sample.answer):
        spans.append((start, stop))
        start, stop = stop, stop + block_length
    return spans


# Columns of one token, in the order of `PackedBatch`'s tensors.
Token = tuple[int, int, int, int, int, int, int]


@dataclass(slots=True)
class _Row:
    """One row being filled."""

    clean: list[Token]
    noisy: list[Token]
    num_samples: int = 0


@dataclass(frozen=True, slots=True)
class PackShape:
    """How many rows, tokens per row in each stream, and which block lengths samples draw from."""

    num_rows: int
    num_clean: int
    num_noisy: int
    block_lengths: tuple[int, ...]


def clean_tokens(sample: Sample, index: int, eos: int) -> list[Token]:
    """Prompt and answer, each position asked for its successor; only answer tokens count."""
    tokens, first_answer = sample.prompt + sample.answer, len(sample.prompt)
    following = [*tokens[1:], eos]
    return [
        (token, place, index, 0, following[place], int(first_answer <= place + 1 < len(tokens)), 0)
        for place, token in enumerate(tokens)
    ]


def noisy_tokens(sample: Sample, index: int, spans: list[tuple[int, int]], block_length: int, eos: int) -> list[Token]:
    """The blocks of the answer, each position asked for itself; seeds are given, not asked."""
    first_answer, tokens = len(sample.prompt), []
    for start, stop in spans:
        is_whole = stop - start == block_length
        for place in range(start, stop):
            token = sample.answer[place] if place < len(sample.answer) else eos
            is_seed = is_whole and place == start
            tokens.append((token, first_answer + place, index, first_answer + start, token, int(not is_seed), int(is_seed)))
    return tokens


def pack_batch(samples: Iterator[Sample], rng: random.Random, shape: PackShape, eos: int) -> PackedBatch:
    """First-fit packing: a sample goes to the first row with room; a few misfits in a row end the batch."""
    rows = [_Row([], []) for _ in range(shape.num_rows)]
    misfits = 0
    while misfits < MAX_MISFITS:
        sample = next(samples)
        block_length = rng.choice(shape.block_lengths)
        # Diffusion starts its blocks at the first answer token; speculation, after ragged acceptance, anywhere.
        spans = block_starts(sample, block_length, rng.choice((0, rng.randrange(block_length))))
        num_clean, num_noisy = len(sample.prompt) + len(sample.answer), spans[-1][1]
        fitting = (
            row
            for row in rows
            if len(row.clean) + num_clean <= shape.num_clean and len(row.noisy) + num_noisy <= shape.num_noisy
        )
        row = next(fitting, None)
        if row is None:
            misfits += 1
            continue
        row.clean += clean_tokens(sample, row.num_samples, eos)
        row.noisy += noisy_tokens(sample, row.num_samples, spans, block_length, eos)
        row.num_samples += 1
    padding: Token = (eos, 0, NO_SAMPLE, 0, eos, 0, 0)
    for row in rows:
        row.clean += [padding] * (shape.num_clean - len(row.clean))
        row.noisy += [padding] * (shape.num_noisy - len(row.noisy))
    columns = torch.tensor([row.clean + row.noisy for row in rows]).unbind(-1)
    ids, position, sample_index, start, target, is_answer, is_seed = columns
    return PackedBatch(ids, position, sample_index, start, target, is_answer.bool(), is_seed.bool(), shape.num_clean)

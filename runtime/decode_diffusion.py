"""Block diffusion: fill a block of masks over several bidirectional runs, then commit it with one causal run.

Method: Nemotron-Labs-Diffusion, arXiv 2607.05722, block-wise denoising with causal commits. A run of several rows goes through
its blocks in step: a row whose block is complete waits for the others, and its block does not change any more.
"""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence as Sized
from dataclasses import dataclass
from typing import Any

import numpy as np

from nemodiff_trt.runtime.decisions import CommitRule, commit_masks, next_block
from nemodiff_trt.runtime.events import DecodeStep, RowStep
from nemodiff_trt.runtime.kv_cache import KVCache
from nemodiff_trt.runtime.sequence import Rows, Sequence, unfinished
from nemodiff_trt.runtime.session import Session
from nemodiff_trt.vocabulary import Role


@dataclass(slots=True)
class _Blocks:
    """`ids` int64 [B,S], and how many leading tokens of each row are part of its answer, the seed included."""

    ids: np.ndarray
    num_emitted: list[int]


def decode_diffusion(
    session: Session, cache: KVCache[Any], sequences: Sized[Sequence], block_length: int, rule: CommitRule
) -> Iterator[DecodeStep]:
    """Extend prefilled `sequences` until all are finished.

    Tokens are emitted as soon as no mask is left of them. A block is complete when its last token is emitted, the answer ends
    in it, or the thinking budget cuts it. A row that is finished is not committed any more.

    Args:
        session: with the roles denoise and verify.
        cache: holds the prompts.
        sequences: one for each row.
        block_length: seed and masks of a block, 2 to the built maximum.
        rule: which positions a pass fixes.
    """
    mask_token_id = session.model.mask_token_id
    blocks = _Blocks(np.full((len(sequences), block_length), mask_token_id, np.int64), [1] * len(sequences))
    active = unfinished(enumerate(sequences), cache)
    while active:
        seeds = [sequence.tokens[-1] if sequence.tokens else 0 for sequence in sequences]
        next_block(blocks.ids, seeds, mask_token_id)
        for row, sequence in active:
            sequence.cycles += 1
            blocks.num_emitted[row] = 1
        yield from _denoise(session, cache, active, blocks, rule)
        active = unfinished(active, cache)
        if not active:
            return
        verified = session.run(Role.VERIFY, blocks.ids, cache).token
        rows = []
        for row, sequence in active:
            sequence.forward_passes += 1
            # Tokens right of a cut are not counted, so the next block overwrites them.
            cache.length[row] += blocks.num_emitted[row]
            rows.append(RowStep(row, sequence.emit((int(verified[row, blocks.num_emitted[row] - 1]),))))
        yield DecodeStep(Role.VERIFY, rows)
        active = unfinished(active, cache)


def _denoise(session: Session, cache: KVCache[Any], active: Rows, blocks: _Blocks, rule: CommitRule) -> Iterator[DecodeStep]:
    """Run passes until the block of every row is complete."""
    num_masks = blocks.ids.shape[1] - 1
    is_open = np.zeros(len(blocks.ids), np.bool_)
    is_open[[row for row, _ in active]] = True
    # Every pass fixes at least one position, so there are at most as many passes as masks.
    for step in range(num_masks):
        output = session.run(Role.DENOISE, blocks.ids, cache)
        quota = rule.quota(step, num_masks)
        commit = commit_masks(blocks.ids, output, is_open, session.model.mask_token_id, rule.threshold, quota)
        rows = []
        for row, sequence in active:
            sequence.forward_passes += 1
            if not is_open[row]:
                continue
            sequence.draft_passes += 1
            committed = [(offset, int(blocks.ids[row, offset])) for offset in np.flatnonzero(commit[row]).tolist()]
            emitted, is_complete = _emit_known(sequence, blocks, row, session.model.mask_token_id)
            is_open[row] = not is_complete
            rows.append(RowStep(row, emitted, committed=committed))
        yield DecodeStep(Role.DENOISE, rows)
        active = unfinished(active, cache)
        is_unfinished = np.zeros_like(is_open)
        is_unfinished[[row for row, _ in active]] = True
        is_open &= is_unfinished
        if not is_open.any():
            return


def _emit_known(sequence: Sequence, blocks: _Blocks, row: int, mask_token_id: int) -> tuple[list[int], bool]:
    """Emit the tokens of `row` that have no mask before them any more; returns them, and whether the block is complete."""
    ids = blocks.ids[row].tolist()
    begin = end = blocks.num_emitted[row]
    while end < len(ids) and ids[end] != mask_token_id:
        end += 1
    emitted = sequence.emit(ids[begin:end])
    blocks.num_emitted[row] = begin + len(emitted)
    if sequence.was_cut:
        blocks.ids[row, blocks.num_emitted[row] - 1] = emitted[-1]
    is_complete = sequence.was_cut or sequence.finish_reason is not None or blocks.num_emitted[row] == len(ids)
    return emitted, is_complete

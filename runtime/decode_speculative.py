"""Self-speculation: one model drafts a block bidirectionally and verifies it causally. Greedy output equals greedy `ar`.

Method: Nemotron-Labs-Diffusion, arXiv 2607.05722, linear self-speculation.
"""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence as Sized
from typing import Any

import numpy as np

from nemodiff_trt.runtime.decisions import accept_draft, commit_masks, next_block
from nemodiff_trt.runtime.events import DecodeStep, RowStep
from nemodiff_trt.runtime.kv_cache import KVCache
from nemodiff_trt.runtime.sequence import Rows, Sequence, unfinished
from nemodiff_trt.runtime.session import Session
from nemodiff_trt.vocabulary import Role


def decode_speculative(
    session: Session, cache: KVCache[Any], sequences: Sized[Sequence], block_length: int, threshold: float = 0.0
) -> Iterator[DecodeStep]:
    """Extend prefilled `sequences` until all are finished. Every row accepts its own number of tokens.

    Args:
        session: with the roles draft and verify.
        cache: holds the prompts.
        sequences: one for each row.
        block_length: seed and drafts of a cycle, 2 to the built maximum.
        threshold: 0 drafts in one pass; above 0 each pass fixes the guesses of at least this confidence, the best one always.
    """
    mask_token_id = session.model.mask_token_id
    block = np.full((len(sequences), block_length), mask_token_id, np.int64)
    active = unfinished(enumerate(sequences), cache)
    while active:
        next_block(block, [sequence.tokens[-1] if sequence.tokens else 0 for sequence in sequences], mask_token_id)
        for _, sequence in active:
            sequence.cycles += 1
        if threshold > 0:
            yield from _draft_in_passes(session, cache, active, block, threshold)
        else:
            yield _draft_at_once(session, cache, active, block)
        active = unfinished(active, cache)
        if not active:
            return
        output = session.run(Role.VERIFY, block, cache)
        matched, verified, drafts = accept_draft(block, output.token).tolist(), output.token.tolist(), block.tolist()
        rows = []
        for row, sequence in active:
            emitted = sequence.emit(verified[row][: matched[row] + 1])
            is_own = sequence.was_cut or len(emitted) > matched[row]
            accepted = len(emitted) - is_own
            sequence.forward_passes += 1
            sequence.accepted_drafts += accepted
            # Seed and accepted drafts stay; the last token is the next seed and not cached yet.
            cache.length[row] += len(emitted)
            rows.append(RowStep(row, emitted, drafts[row][1:], accepted))
        yield DecodeStep(Role.VERIFY, rows)
        active = unfinished(active, cache)


def _draft_at_once(session: Session, cache: KVCache[Any], active: Rows, block: np.ndarray) -> DecodeStep:
    """Fill every mask of `block` with the guess of one pass."""
    block[:, 1:] = session.run(Role.DRAFT, block, cache).token[:, 1:]
    drafts = block.tolist()
    rows = []
    for row, sequence in active:
        sequence.forward_passes += 1
        sequence.draft_passes += 1
        rows.append(RowStep(row, [], drafted=drafts[row][1:]))
    return DecodeStep(Role.DRAFT, rows)


def _draft_in_passes(
    session: Session, cache: KVCache[Any], active: Rows, block: np.ndarray, threshold: float
) -> Iterator[DecodeStep]:
    """Fill the masks of `block` over several passes, confident ones first."""
    mask_token_id = session.model.mask_token_id
    is_open = np.zeros(len(block), np.bool_)
    is_open[[row for row, _ in active]] = True
    # Every pass fixes at least one position, so there are at most as many passes as masks.
    for _ in range(block.shape[1] - 1):
        commit = commit_masks(block, session.run(Role.DRAFT, block, cache), is_open, mask_token_id, threshold, quota=1)
        is_filled = (block != mask_token_id).all(axis=1)
        rows = []
        for row, sequence in active:
            sequence.forward_passes += 1
            if not is_open[row]:
                continue
            sequence.draft_passes += 1
            committed = [(offset, int(block[row, offset])) for offset in np.flatnonzero(commit[row]).tolist()]
            drafted = block[row, 1:].tolist() if is_filled[row] else ()
            rows.append(RowStep(row, [], drafted, committed=committed))
        yield DecodeStep(Role.DRAFT, rows)
        active = unfinished(active, cache)
        is_open[:] = False
        is_open[[row for row, _ in active if not is_filled[row]]] = True
        if not is_open.any():
            return

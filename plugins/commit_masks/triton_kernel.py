"""Kernel of `nemodiff::commit_masks`: one program for one block."""

import triton
import triton.language as tl

# Below any probability: a NaN at a masked position, then positions that are no mask.
_UNSURE = tl.constexpr(-1.0)
_KNOWN = tl.constexpr(-2.0)


@triton.jit
def first_set(flags, offsets, otherwise):
    """Lowest of `offsets` whose flag is set."""
    return tl.min(tl.where(flags, offsets, otherwise), axis=0)


@triton.jit
def _score(block_ptr, confidence_ptr, row_offsets, is_slot, is_open, mask_id):
    """Confidence of masked positions of an open row, less than any of them elsewhere."""
    confidence = tl.load(confidence_ptr + row_offsets, mask=is_slot, other=0.0)
    ids = tl.load(block_ptr + row_offsets, mask=is_slot, other=0)
    sure = tl.where(confidence != confidence, _UNSURE, confidence)
    return tl.where((ids == mask_id) & is_slot & is_open, sure, _KNOWN)


@triton.jit
def commit_masks_rows(
    block_ptr, token_ptr, confidence_ptr, quota_ptr, ids_ptr, fixed_ptr, left_ptr, end_ptr,
    step, mask_id, eos_id, threshold, SLOTS: tl.constexpr, CHUNK: tl.constexpr
):  # fmt: skip
    """One row. Grid: B programs; step <= SLOTS, a multiple of CHUNK. A threshold above 1 is never reached."""
    row = tl.program_id(0).to(tl.int64)
    slots = tl.arange(0, SLOTS)
    is_slot = slots < step
    start = row * step
    quota = tl.load(quota_ptr + row)
    is_open = quota > 0
    block = tl.load(block_ptr + start + slots, mask=is_slot, other=-1)
    score = _score(block_ptr, confidence_ptr, start + slots, is_slot, is_open, mask_id)
    rank = tl.zeros((SLOTS,), tl.int32)
    # In chunks: all pairs at once would not fit into registers.
    for first in tl.static_range(0, SLOTS, CHUNK):
        others = first + tl.arange(0, CHUNK)
        other = _score(block_ptr, confidence_ptr, start + others, others < step, is_open, mask_id)
        is_left = others[None, :] < slots[:, None]
        ahead = (other[None, :] > score[:, None]) | ((other[None, :] == score[:, None]) & is_left)
        rank += tl.sum(ahead.to(tl.int32), axis=1)
    masked = score > _KNOWN
    commit = masked & ((rank < quota) | (score >= threshold))
    token = tl.load(token_ptr + start + slots, mask=is_slot, other=-1)
    ids = tl.where(commit, token, block)
    is_mask = (ids == mask_id) & is_slot
    first_mask = first_set(is_mask, slots, step)
    first_end = first_set((ids == eos_id) & is_slot & (slots > 0), slots, step)
    tl.store(ids_ptr + start + slots, ids, mask=is_slot)
    tl.store(fixed_ptr + row, tl.sum(commit.to(tl.int64), axis=0))
    tl.store(left_ptr + row, tl.sum(is_mask.to(tl.int64), axis=0))
    tl.store(end_ptr + row, tl.where(first_end < first_mask, first_end, step).to(tl.int64))

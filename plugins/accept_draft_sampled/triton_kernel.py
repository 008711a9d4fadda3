"""Kernels of `nemodiff::accept_draft_sampled`: compare the drafts, sum (p - q)+ by parts of the vocabulary, draw and emit.

Only two rows of V probabilities are read for a sequence, those at the first refused draft; of the others one number each.
"""

import triton
import triton.language as tl

from nemodiff_trt.plugins.accept_draft.triton_kernel import emit_row
from nemodiff_trt.plugins.commit_masks.triton_kernel import first_set

_NO_ID = tl.constexpr(0x7FFFFFFF)


@triton.jit
def sampled_match_rows(block_ptr, draft_ptr, verify_ptr, uniforms_ptr, matched_ptr, step, num_ids, SLOTS: tl.constexpr):
    """Number of drafts that are kept. Grid: B programs; step <= SLOTS."""
    row = tl.program_id(0).to(tl.int64)
    slots = tl.arange(0, SLOTS)
    has_draft = slots + 1 < step
    token = tl.load(block_ptr + row * step + slots + 1, mask=has_draft, other=0)
    p = tl.load(verify_ptr + (row * step + slots) * num_ids + token, mask=has_draft, other=0.0)
    q = tl.load(draft_ptr + (row * (step - 1) + slots) * num_ids + token, mask=has_draft, other=0.0)
    u = tl.load(uniforms_ptr + row * step + slots, mask=has_draft, other=0.0)
    # Behind the drafts p and q are 0, which is refused.
    tl.store(matched_ptr + row, first_set(u * q >= p, slots, step - 1))


@triton.jit
def _weights(draft_ptr, verify_ptr, row, matched, ids, step, num_ids):
    """(p - q)+ and p of the ids at the first refused draft; behind the last draft q is zero."""
    p = tl.load(verify_ptr + (row * step + matched) * num_ids + ids, mask=ids < num_ids, other=0.0)
    num_drafted = tl.where(matched + 1 < step, num_ids, 0)
    q = tl.load(draft_ptr + (row * (step - 1) + matched) * num_ids + ids, mask=ids < num_drafted, other=0.0)
    return tl.maximum(p - q, 0.0), p


@triton.jit
def sampled_sum_parts(draft_ptr, verify_ptr, matched_ptr, rest_ptr, target_ptr, step, num_ids, num_parts, BLOCK: tl.constexpr):
    """Sums of (p - q)+ and of p over BLOCK ids. Grid: B * num_parts programs, parts of a row side by side."""
    program = tl.program_id(0)
    row, part = (program // num_parts).to(tl.int64), program % num_parts
    matched = tl.load(matched_ptr + row)
    rest, p = _weights(draft_ptr, verify_ptr, row, matched, part * BLOCK + tl.arange(0, BLOCK), step, num_ids)
    tl.store(rest_ptr + program, tl.sum(rest, axis=0))
    tl.store(target_ptr + program, tl.sum(p, axis=0))


@triton.jit
def sampled_emit_rows(
    block_ptr, draft_ptr, verify_ptr, uniforms_ptr, length_ptr, remaining_ptr, ends_ptr, matched_ptr, rest_ptr, target_ptr,
    accepted_ptr, emitted_ptr, count_ptr, seed_ptr, next_length_ptr, left_ptr,
    step, num_ids, num_parts, num_ends,
    SLOTS: tl.constexpr, ENDS: tl.constexpr, PARTS: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """Draw one token and emit the row. Grid: B programs; step <= SLOTS, num_ends <= ENDS, num_parts <= PARTS."""
    row = tl.program_id(0).to(tl.int64)
    matched = tl.load(matched_ptr + row)
    parts = tl.arange(0, PARTS)
    is_part = parts < num_parts
    rests = tl.load(rest_ptr + row * num_parts + parts, mask=is_part, other=0.0)
    targets = tl.load(target_ptr + row * num_parts + parts, mask=is_part, other=0.0)
    has_rest = tl.sum(rests, axis=0) > 0.0
    sums = tl.where(has_rest, rests, targets)
    uniform = tl.load(uniforms_ptr + row * step + step - 1)
    goal = uniform * tl.sum(sums, axis=0)
    running = tl.cumsum(sums, axis=0)
    # The first part whose running sum exceeds the goal, or the last one with any weight if rounding leaves none.
    last_part = tl.max(tl.where(sums > 0.0, parts, 0), axis=0)
    part = tl.minimum(first_set(running > goal, parts, PARTS), last_part)
    goal -= tl.sum(tl.where(parts < part, sums, 0.0), axis=0)
    ids = part * BLOCK + tl.arange(0, BLOCK)
    rest, p = _weights(draft_ptr, verify_ptr, row, matched, ids, step, num_ids)
    weights = tl.where(has_rest, rest, p)
    last_id = tl.max(tl.where(weights > 0.0, ids, 0), axis=0)
    own = tl.minimum(first_set((tl.cumsum(weights, axis=0) > goal) & (weights > 0.0), ids, _NO_ID), last_id).to(tl.int64)
    slots = tl.arange(0, SLOTS)
    moved = tl.load(block_ptr + row * step + slots + 1, mask=slots + 1 < step, other=0)
    candidates = tl.where(slots == matched, own, moved)
    seed = tl.load(block_ptr + row * step)
    states = (length_ptr, remaining_ptr, ends_ptr)
    results = (accepted_ptr, emitted_ptr, count_ptr, seed_ptr, next_length_ptr, left_ptr)
    emit_row(candidates, matched, seed, row, step, states, results, num_ends, SLOTS, ENDS)

"""Kernel of `nemodiff::accept_draft`, and the end of a cycle that it shares with the sampled form."""

import triton
import triton.language as tl

from nemodiff_trt.plugins.commit_masks.triton_kernel import first_set


@triton.jit
def emit_row(candidates, matched, seed, row, step, state_ptrs, result_ptrs, num_ends, SLOTS: tl.constexpr, ENDS: tl.constexpr):
    """Emit up to matched + 1 of `candidates` [SLOTS], less at an end or at the limit, and store what the next cycle needs.

    `state_ptrs` and `result_ptrs` are the tensors of the operator, in its order.
    """
    slots = tl.arange(0, SLOTS)
    is_slot = slots < step
    ends = tl.arange(0, ENDS)
    # No token is negative, so the padding of the ends never equals one.
    end_ids = tl.load(state_ptrs[2] + ends, mask=ends < num_ends, other=-1)
    hits = (candidates[:, None] == end_ids[None, :]) & is_slot[:, None] & (ends < num_ends)[None, :]
    first_end = first_set(tl.max(hits.to(tl.int32), axis=1) > 0, slots, step)
    length = tl.load(state_ptrs[0] + row)
    left = tl.maximum(tl.load(state_ptrs[1] + row), 0)
    count = tl.minimum((tl.minimum(matched, first_end) + 1).to(tl.int64), left)
    emitted = tl.where(slots < count, candidates, -1)
    last = tl.sum(tl.where(slots == count - 1, candidates, 0), axis=0)
    tl.store(result_ptrs[0] + row, tl.minimum(count, matched.to(tl.int64)))
    tl.store(result_ptrs[1] + row * step + slots, emitted, mask=is_slot)
    tl.store(result_ptrs[2] + row, count)
    tl.store(result_ptrs[3] + row, tl.where(count > 0, last, seed))
    tl.store(result_ptrs[4] + row, length + count)
    tl.store(result_ptrs[5] + row, tl.where(first_end < count, 0, left - count))


@triton.jit
def accept_draft_rows(
    block_ptr, verified_ptr, length_ptr, remaining_ptr, ends_ptr,
    accepted_ptr, emitted_ptr, count_ptr, seed_ptr, next_length_ptr, left_ptr,
    step, num_ends, SLOTS: tl.constexpr, ENDS: tl.constexpr
):  # fmt: skip
    """One row. Grid: B programs; step <= SLOTS, num_ends <= ENDS."""
    row = tl.program_id(0).to(tl.int64)
    slots = tl.arange(0, SLOTS)
    verified = tl.load(verified_ptr + row * step + slots, mask=slots < step, other=-1)
    has_draft = slots + 1 < step
    draft = tl.load(block_ptr + row * step + slots + 1, mask=has_draft, other=-1)
    matched = first_set((draft != verified) | (slots + 1 >= step), slots, step)
    seed = tl.load(block_ptr + row * step)
    states = (length_ptr, remaining_ptr, ends_ptr)
    results = (accepted_ptr, emitted_ptr, count_ptr, seed_ptr, next_length_ptr, left_ptr)
    emit_row(verified, matched, seed, row, step, states, results, num_ends, SLOTS, ENDS)

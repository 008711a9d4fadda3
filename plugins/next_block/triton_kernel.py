"""Kernel of `nemodiff::next_block`."""

import triton
import triton.language as tl


@triton.jit
def next_block_rows(seed_ptr, block_ptr, block_length, mask_id, SLOTS: tl.constexpr):
    """One block. Grid: B programs; block_length <= SLOTS."""
    row = tl.program_id(0).to(tl.int64)
    slots = tl.arange(0, SLOTS)
    ids = tl.where(slots == 0, tl.load(seed_ptr + row), mask_id.to(tl.int64))
    tl.store(block_ptr + row * block_length + slots, ids, mask=slots < block_length)

"""Kernel of `nemodiff::masked_attention`: the used part of a linear cache, then the step's own tokens as a mask says.

As `attention_rows`, in two loops. Slots before the step need no mask. Of the step's own slots, a block that no row of the
program sees is skipped: in a step of groups that must not see each other, that is most of them.
"""

import triton
import triton.language as tl

from nemodiff_trt.plugins.attention.triton_kernel import attend_slots, store_rows


@triton.jit
def masked_attention_rows(
    query_ptr, key_ptr, value_ptr, length_ptr, mask_ptr, out_ptr, mixed_ptr, stats_ptr, step, capacity, scale,
    KV_HEADS: tl.constexpr, GROUP: tl.constexpr, D: tl.constexpr, SPLITS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr
):  # fmt: skip
    """BLOCK_M rows of one key head and one share of the slots; grid, rows and results as of `attention_rows`."""
    batch = (tl.program_id(1) // KV_HEADS).to(tl.int64)
    head = tl.program_id(1) % KV_HEADS
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    tokens = rows // GROUP
    is_row = tokens < step
    places = ((batch * step + tokens) * KV_HEADS + head) * GROUP + rows % GROUP
    features = tl.arange(0, D)
    length = tl.load(length_ptr + batch).to(tl.int32)
    used = length + step
    share = tl.cdiv(tl.cdiv(used, BLOCK_N), SPLITS) * BLOCK_N
    begin = tl.program_id(2) * share
    end = tl.minimum(begin + share, used)
    query = tl.load(query_ptr + places[:, None] * D + features[None, :], mask=is_row[:, None], other=0.0)
    cache = (batch * KV_HEADS + head) * capacity * D
    state = tl.full((BLOCK_M,), -float("inf"), tl.float32), tl.zeros((BLOCK_M,), tl.float32), tl.zeros((BLOCK_M, D), tl.float32)
    cached_end = tl.minimum(end, length)
    for first in range(begin, cached_end, BLOCK_N):
        slots = first + tl.arange(0, BLOCK_N)
        is_used = slots < cached_end
        offsets = cache + slots[:, None] * D + features[None, :]
        state = attend_slots(query, key_ptr, value_ptr, offsets, is_used, is_used[None, :], scale, state)
    mask_rows = mask_ptr + (batch * step + tokens[:, None]) * step - length
    for first in range(tl.maximum(begin, length), end, BLOCK_N):
        slots = first + tl.arange(0, BLOCK_N)
        is_used = slots < end
        visible = tl.load(mask_rows + slots[None, :], mask=is_row[:, None] & is_used[None, :], other=0) != 0
        if tl.max(tl.max(visible.to(tl.int32), axis=1), axis=0) > 0:
            offsets = cache + slots[:, None] * D + features[None, :]
            state = attend_slots(query, key_ptr, value_ptr, offsets, is_used, visible, scale, state)
    num_rows = (tl.num_programs(1) // KV_HEADS).to(tl.int64) * step * KV_HEADS * GROUP
    store_rows(state, out_ptr, mixed_ptr, stats_ptr, places, is_row, num_rows, end > begin, SPLITS)

"""Kernels of `nemodiff::attention`: a step's queries over the used part of a linear cache, which is read in place.

A program holds some query rows of all heads that share a key head, so keys and values are loaded once for the whole group. The
used slots are divided among SPLITS programs where a step has too few rows to fill a GPU; a second kernel joins their results.
Nothing beyond the last slot that a row of the program may see is loaded: the work grows with the length, not with the capacity.
"""

import triton
import triton.language as tl


@triton.jit
def attend_slots(query, key_ptr, value_ptr, offsets, is_used, visible, scale, state):
    """Add some slots to the running softmax of some rows.

    `state` is largest score [M], sum of weights [M], weighted values [M,D]; `offsets` [N,D] are those of the slots, `visible`
    [M,N] says which row sees which of them. Slots that are not used may hold anything, a NaN too: they are not loaded.
    """
    best, total, mixed = state
    key = tl.load(key_ptr + offsets, mask=is_used[:, None], other=0.0)
    scores = tl.dot(query, tl.trans(key), input_precision="ieee") * scale
    scores = tl.where(visible, scores, -float("inf"))
    larger = tl.maximum(best, tl.max(scores, axis=1))
    # A row that has seen nothing yet: zero instead of -inf keeps the differences defined.
    shift = tl.where(larger == -float("inf"), 0.0, larger)
    weights = tl.exp2(scores - shift[:, None])
    kept = tl.exp2(best - shift)
    total = total * kept + tl.sum(weights, axis=1)
    value = tl.load(value_ptr + offsets, mask=is_used[:, None], other=0.0)
    mixed = mixed * kept[:, None] + tl.dot(weights.to(value.dtype), value, input_precision="ieee")
    return larger, total, mixed


@triton.jit
def store_rows(state, out_ptr, mixed_ptr, stats_ptr, places, is_row, num_rows, has_slots, SPLITS: tl.constexpr):
    """The result of BLOCK_M rows, or what `attention_join` needs of one of their SPLITS shares of the slots."""
    best, total, mixed = state
    D: tl.constexpr = mixed.shape[1]
    split = tl.program_id(2)
    outs = places[:, None] * D + tl.arange(0, D)[None, :]
    if SPLITS == 1:
        tl.store(out_ptr + outs, (mixed / total[:, None]).to(out_ptr.dtype.element_ty), mask=is_row[:, None])
    else:
        tl.store(stats_ptr + split * num_rows + places, best, mask=is_row)
        tl.store(stats_ptr + (SPLITS + split) * num_rows + places, total, mask=is_row)
        if has_slots:
            tl.store(mixed_ptr + split * num_rows * D + outs, mixed, mask=is_row[:, None])


@triton.jit
def attention_rows(
    query_ptr, key_ptr, value_ptr, length_ptr, out_ptr, mixed_ptr, stats_ptr, step, capacity, scale,
    KV_HEADS: tl.constexpr, GROUP: tl.constexpr, D: tl.constexpr, CAUSAL: tl.constexpr, SPLITS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr
):  # fmt: skip
    """BLOCK_M rows of one key head and one share of the slots.

    Grid: (tiles of step * GROUP rows, B * KV_HEADS, SPLITS). Row r is token r // GROUP and the head r % GROUP of the group.
    `scale` includes log2(e). With one split the result goes to `out_ptr`; with several, weighted sums go to `mixed_ptr`
    [SPLITS,B,S,H,D] and, for each row, largest score and sum to `stats_ptr` [2,SPLITS,B,S,H].
    """
    batch = (tl.program_id(1) // KV_HEADS).to(tl.int64)
    head, split = tl.program_id(1) % KV_HEADS, tl.program_id(2)
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    tokens = rows // GROUP
    is_row = tokens < step
    places = ((batch * step + tokens) * KV_HEADS + head) * GROUP + rows % GROUP
    features = tl.arange(0, D)
    length = tl.load(length_ptr + batch).to(tl.int32)
    last_token = tl.minimum(((tl.program_id(0) + 1) * BLOCK_M - 1) // GROUP, step - 1) if CAUSAL else step - 1
    used = length + last_token + 1
    share = tl.cdiv(tl.cdiv(used, BLOCK_N), SPLITS) * BLOCK_N
    begin = split * share
    end = tl.minimum(begin + share, used)
    seen = length + (tokens if CAUSAL else tokens * 0 + step - 1)
    query = tl.load(query_ptr + places[:, None] * D + features[None, :], mask=is_row[:, None], other=0.0)
    cache = (batch * KV_HEADS + head) * capacity * D
    state = tl.full((BLOCK_M,), -float("inf"), tl.float32), tl.zeros((BLOCK_M,), tl.float32), tl.zeros((BLOCK_M, D), tl.float32)
    for first in range(begin, end, BLOCK_N):
        slots = first + tl.arange(0, BLOCK_N)
        is_used = slots < end
        visible = is_used[None, :] & (slots[None, :] <= seen[:, None])
        offsets = cache + slots[:, None] * D + features[None, :]
        state = attend_slots(query, key_ptr, value_ptr, offsets, is_used, visible, scale, state)
    num_rows = (tl.num_programs(1) // KV_HEADS).to(tl.int64) * step * KV_HEADS * GROUP
    store_rows(state, out_ptr, mixed_ptr, stats_ptr, places, is_row, num_rows, end > begin, SPLITS)


@triton.jit
def attention_join(mixed_ptr, stats_ptr, out_ptr, num_rows, D: tl.constexpr, SPLITS: tl.constexpr):
    """One row from its splits; those that saw nothing wrote no sums. Grid: num_rows = B * S * H programs."""
    row = tl.program_id(0).to(tl.int64)
    splits, features = tl.arange(0, SPLITS), tl.arange(0, D)
    best = tl.load(stats_ptr + splits * num_rows + row)
    total = tl.load(stats_ptr + (SPLITS + splits) * num_rows + row)
    weight = tl.exp2(best - tl.max(best, axis=0))
    offsets = (splits[:, None] * num_rows + row) * D + features[None, :]
    mixed = tl.load(mixed_ptr + offsets, mask=(total > 0.0)[:, None], other=0.0)
    joined = tl.sum(mixed * weight[:, None], axis=0) / tl.sum(total * weight, axis=0)
    tl.store(out_ptr + row * D + features, joined.to(out_ptr.dtype.element_ty))

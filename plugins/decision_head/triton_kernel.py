"""Kernels of `nemodiff::decision_head`: one pass over the logits, split over the vocabulary, then a small second kernel.

The first kernel gives every program one part of one row, so that a single row already occupies a whole GPU. A part has no
loop: its logits stay in registers between the maximum and the sum. What a part leaves is 12 bytes.

Parameters come in the order in which TensorRT binds those of a plugin: inputs, numbers, outputs.
"""

import triton
import triton.language as tl

# Above the key of any number: a NaN is the largest candidate, as in torch.
_NAN_KEY = tl.constexpr(0x7FFFFFFF)
_NO_ID = tl.constexpr(0x7FFFFFFF)


@triton.jit
def order_key(x):
    """int32 keys in the order of the fp32 numbers `x`; both zeros are equal, every NaN is the largest."""
    # Minus zero would come before zero, and they tie.
    bits = tl.where(x == 0.0, 0.0, x).to(tl.int32, bitcast=True)
    key = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return tl.where(x != x, _NAN_KEY, key)


@triton.jit
def key_value(key):
    """The number that `order_key` gave this key."""
    return (key ^ ((key >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def finite_or_zero(x):
    """`x`, and 0 for an infinity: what may be subtracted from logits without making a NaN of equal infinities."""
    return tl.where(tl.abs(x) == float("inf"), 0.0, x)


@triton.jit
def decision_head_part(logits_ptr, num_ids, num_parts, mask_id, key_ptr, id_ptr, sum_ptr, BLOCK: tl.constexpr):
    """Largest candidate of BLOCK logits as a key, its lowest id, and the sum of exp(candidate - largest).

    Grid: rows * num_parts programs, parts of a row side by side. The mask id is no candidate.
    """
    program = tl.program_id(0)
    row, part = program // num_parts, program % num_parts
    ids = part * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(logits_ptr + row.to(tl.int64) * num_ids + ids, mask=ids < num_ids, other=-float("inf")).to(tl.float32)
    x = tl.where(ids == mask_id, -float("inf"), x)
    keys = order_key(x)
    best = tl.max(keys, axis=0)
    # Ids beyond the vocabulary hold -inf and are higher than any of it, so they never win a tie.
    lowest = tl.min(tl.where(keys == best, ids, _NO_ID), axis=0)
    total = tl.sum(tl.exp(x - finite_or_zero(key_value(best))), axis=0)
    tl.store(key_ptr + program, best)
    tl.store(id_ptr + program, lowest)
    tl.store(sum_ptr + program, total)


@triton.jit
def decision_head_combine(
    logits_ptr, key_ptr, id_ptr, sum_ptr, num_ids, num_parts, mask_id, token_ptr, confidence_ptr, PARTS: tl.constexpr
):
    """Token and confidence of a row from its parts and the logit of the mask. Grid: rows programs; num_parts <= PARTS."""
    row = tl.program_id(0)
    parts = tl.arange(0, PARTS)
    is_part = parts < num_parts
    offsets = row * num_parts + parts
    keys = tl.load(key_ptr + offsets, mask=is_part, other=-0x80000000)
    ids = tl.load(id_ptr + offsets, mask=is_part, other=_NO_ID)
    sums = tl.load(sum_ptr + offsets, mask=is_part, other=0.0)
    mask_logit = tl.load(logits_ptr + row.to(tl.int64) * num_ids + mask_id).to(tl.float32)
    best_key = tl.max(keys, axis=0)
    token = tl.min(tl.where(keys == best_key, ids, _NO_ID), axis=0)
    best = key_value(best_key)
    largest = tl.maximum(best, mask_logit)
    shift = finite_or_zero(largest)
    # A part of nothing but -inf has the sum 0; scaling it could make 0 * inf.
    scaled = tl.where(sums == 0.0, 0.0, sums * tl.exp(finite_or_zero(key_value(keys)) - shift))
    total = tl.sum(scaled, axis=0) + tl.exp(mask_logit - shift)
    tl.store(token_ptr + row, token.to(tl.int64))
    tl.store(confidence_ptr + row, tl.exp(best - largest) / total)

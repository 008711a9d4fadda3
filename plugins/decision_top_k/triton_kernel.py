"""Kernels of `nemodiff::decision_top_k`: as those of `decision_head`, with the K best of a part in place of the best.

A part takes its best candidate K times, each time without those taken before; the second kernel does the same over what the
parts took. The logits are read once.
"""

import triton
import triton.language as tl

from nemodiff_trt.plugins.decision_head.triton_kernel import finite_or_zero, key_value, order_key

# Below the key of any number, -inf included: nothing is left to take here.
_TAKEN = tl.constexpr(-0x80000000)
_NO_ID = tl.constexpr(0x7FFFFFFF)


@triton.jit
def take_best(keys, ids):
    """Largest key, its lowest id, and the keys without it; the id is out of range where nothing was left."""
    best = tl.max(keys, axis=0)
    lowest = tl.min(tl.where(keys == best, ids, _NO_ID), axis=0)
    return best, tl.where(best == _TAKEN, _NO_ID, lowest), tl.where(ids == lowest, _TAKEN, keys)


@triton.jit
def top_k_part(
    logits_ptr, num_ids, num_parts, mask_id, k, key_ptr, id_ptr, largest_ptr, sum_ptr, mixed_ptr, BLOCK: tl.constexpr
):  # fmt: skip
    """The k best candidates of BLOCK logits, and what softmax and entropy need of all of them.

    Grid: rows * num_parts programs, parts of a row side by side. Of x, mask included: the key of the largest, the sum of
    exp(x - largest), the sum of exp(x - largest) * (x - largest).
    """
    program = tl.program_id(0)
    row, part = program // num_parts, program % num_parts
    ids = part * BLOCK + tl.arange(0, BLOCK)
    is_id = ids < num_ids
    x = tl.load(logits_ptr + row.to(tl.int64) * num_ids + ids, mask=is_id, other=-float("inf")).to(tl.float32)
    keys = order_key(x)
    largest = tl.max(keys, axis=0)
    shifted = x - finite_or_zero(key_value(largest))
    weights = tl.exp(shifted)
    tl.store(largest_ptr + program, largest)
    tl.store(sum_ptr + program, tl.sum(weights, axis=0))
    tl.store(mixed_ptr + program, tl.sum(tl.where(shifted == -float("inf"), 0.0, weights * shifted), axis=0))
    keys = tl.where(is_id & (ids != mask_id), keys, _TAKEN)
    for rank in range(k):
        best, lowest, keys = take_best(keys, ids)
        tl.store(key_ptr + program.to(tl.int64) * k + rank, best)
        tl.store(id_ptr + program.to(tl.int64) * k + rank, lowest)


@triton.jit
def top_k_combine(
    key_ptr, id_ptr, largest_ptr, sum_ptr, mixed_ptr, num_parts, k, token_ptr, probability_ptr, entropy_ptr,
    PARTS: tl.constexpr, CANDIDATES: tl.constexpr
):  # fmt: skip
    """One row from its parts. Grid: rows programs; num_parts <= PARTS, num_parts * k <= CANDIDATES."""
    row = tl.program_id(0).to(tl.int64)
    parts = tl.arange(0, PARTS)
    is_part = parts < num_parts
    numbers = tl.load(largest_ptr + row * num_parts + parts, mask=is_part, other=_TAKEN)
    sums = tl.load(sum_ptr + row * num_parts + parts, mask=is_part, other=0.0)
    mixed = tl.load(mixed_ptr + row * num_parts + parts, mask=is_part, other=0.0)
    largest = key_value(tl.max(numbers, axis=0))
    shift = finite_or_zero(largest)
    # A part of nothing but -inf has the sum 0 and no largest number; it adds nothing.
    has_weight = sums != 0.0
    moved = tl.where(has_weight, finite_or_zero(key_value(numbers)) - shift, 0.0)
    scale = tl.where(has_weight, tl.exp(moved), 0.0)
    total = tl.sum(sums * scale, axis=0)
    tl.store(entropy_ptr + row, tl.log(total) - tl.sum((mixed + sums * moved) * scale, axis=0) / total)
    places = tl.arange(0, CANDIDATES)
    is_candidate = places < num_parts * k
    keys = tl.load(key_ptr + row * num_parts * k + places, mask=is_candidate, other=_TAKEN)
    ids = tl.load(id_ptr + row * num_parts * k + places, mask=is_candidate, other=_NO_ID)
    for rank in range(k):
        best, lowest, keys = take_best(keys, ids)
        tl.store(token_ptr + row * k + rank, lowest.to(tl.int64))
        tl.store(probability_ptr + row * k + rank, tl.exp(key_value(best) - largest) / total)

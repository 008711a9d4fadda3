"""`nemodiff::attention` as ONNX `Attention` over the used part of the caches.

ONNX Runtime's CPU kernel works over the whole capacity it is given, however short the sequences are. Cutting the caches to the
longest sequence of the batch first makes the cost of a step independent of the capacity, with the same result.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from nemodiff_trt.plugins.attention.reference import AttentionAttributes
from nemodiff_trt.plugins.onnx_emitter import OnnxEmitter


def attention_onnx(
    emit: OnnxEmitter,
    query: str,
    key_cache: str,
    value_cache: str,
    cache_length: str,
    *attributes: Any,
) -> str:
    """Attend `query` [B,S,H*D] to the caches [B,G,K,D]; lower-right causal, or every token sees the whole step.

    `attributes` are those of `AttentionAttributes`.
    """
    num_heads, causal, scale = AttentionAttributes(*attributes)
    part = used_part(emit, query, cache_length)
    inputs = ("", "", "", part.lengths)
    return attend_used(emit, query, (key_cache, value_cache), part, inputs, num_heads, scale, is_causal=int(causal))


class UsedPart(NamedTuple):
    """Of a step: tokens of every sequence, its own included, int64 [B], and the most of them, int64 [1]."""

    lengths: str
    longest: str


def used_part(emit: OnnxEmitter, query: str, cache_length: str) -> UsedPart:
    """How much of the caches a step of `query` [B,S,H*D] uses."""
    lengths = emit.op("Add", [cache_length, emit.size(query, 1)])
    return UsedPart(lengths, emit.op("ReduceMax", [lengths], keepdims=1))


def attend_used(
    emit: OnnxEmitter,
    query: str,
    caches: tuple[str, str],
    part: UsedPart,
    inputs: tuple[str, ...],
    num_heads: int,
    scale: float | None,
    **attributes: Any,
) -> str:
    """`Attention` of `query` [B,S,H*D] to the used part of key and value caches [B,G,K,D]; `inputs` follow these three."""
    width = int(emit.value(query).shape[2])
    heads = emit.op("Reshape", [query, emit.integers(0, 0, num_heads, width // num_heads)])
    rows = emit.op("Transpose", [heads], perm=[0, 2, 1, 3])
    keys, values = (emit.op("Slice", [cache, emit.integers(0), part.longest, emit.integers(2)]) for cache in caches)
    scaling = {} if scale is None else {"scale": scale}
    mixed = emit.op("Attention", [rows, keys, values, *inputs], **attributes, **scaling)
    return emit.op("Reshape", [emit.op("Transpose", [mixed], perm=[0, 2, 1, 3]), emit.integers(0, 0, width)])

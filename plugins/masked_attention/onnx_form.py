"""`nemodiff::masked_attention` as ONNX `Attention` with a mask over the used part of the caches.

The caches are cut to the longest sequence of the batch, as in `nemodiff::attention`: the operator's cost grows with what it is
given. The mask is the same for all layers and so emitted once.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from nemodiff_trt.plugins.attention.onnx_form import attend_used, used_part
from nemodiff_trt.plugins.masked_attention.reference import MaskedAttentionAttributes
from nemodiff_trt.plugins.onnx_emitter import OnnxEmitter
from nemodiff_trt.plugins.onnx_logic import offsets


def masked_attention_onnx(
    emit: OnnxEmitter,
    query: str,
    key_cache: str,
    value_cache: str,
    cache_length: str,
    step_mask: str,
    *attributes: Any,
) -> str:
    """Attend `query` [B,S,H*D] to the caches [B,G,K,D]: to slots before `cache_length` [B], then as `step_mask` [B,S,S] says.

    `attributes` are those of `MaskedAttentionAttributes`.
    """
    num_heads, scale = MaskedAttentionAttributes(*attributes)
    part = used_part(emit, query, cache_length)
    visible = _visible(emit, cache_length, step_mask, part.longest)
    return attend_used(emit, query, (key_cache, value_cache), part, (visible,), num_heads, scale)


def _visible(emit: OnnxEmitter, cache_length: str, step_mask: str, used: str) -> str:
    """Slots that every token of the step sees, bool [B,1,S,U]. `used` int64 [1] is U."""
    zero, slots = emit.constant(np.array(0, dtype=np.int64)), offsets(emit, used)
    # Index in the step of every slot; below zero in the part that was valid before.
    index = emit.op("Sub", [slots, emit.op("Unsqueeze", [cache_length, emit.integers(1)])])
    batch, step = emit.size(step_mask, 0), emit.size(step_mask, 1)
    last = emit.op("Squeeze", [emit.op("Sub", [step, emit.integers(1)])])
    within = emit.op("Unsqueeze", [emit.op("Clip", [index, zero, last]), emit.integers(1)])
    per_query = emit.op("Expand", [within, emit.op("Concat", [batch, step, used], axis=0)])
    named = emit.op("GatherElements", [step_mask, per_query], axis=2)
    row = emit.op("Unsqueeze", [index, emit.integers(1)])
    is_cached, is_step = (emit.op("Less", [row, bound]) for bound in (zero, step))
    return emit.op("Unsqueeze", [emit.op("Or", [is_cached, emit.op("And", [is_step, named])]), emit.integers(1)])

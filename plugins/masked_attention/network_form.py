"""`nemodiff::masked_attention` as `IAttention` with a mask: fused, over the caches in place, with a length per sequence."""

from __future__ import annotations

from typing import Any

import numpy as np

from nemodiff_trt.plugins.attention.network_form import attended_lengths, attention_layer
from nemodiff_trt.plugins.masked_attention.reference import MaskedAttentionAttributes
from nemodiff_trt.plugins.network_emitter import NetworkEmitter, NetworkTensor, NetworkValue


def masked_attention_network(
    emit: NetworkEmitter,
    query: NetworkValue,
    key_cache: NetworkTensor,
    value_cache: NetworkTensor,
    cache_length: NetworkTensor,
    step_mask: NetworkTensor,
    *attributes: Any,
) -> NetworkTensor:
    """Attend `query` [B,S,H*D], already scaled, to the caches [B,G,K,D]: to slots before `cache_length` [B], then as
    `step_mask` [B,S,S] says. `attributes` are those of `MaskedAttentionAttributes`.

    Raises:
        LoweringError: the operator still wants its scores scaled; the layer does not do that.
    """
    num_heads, scale = MaskedAttentionAttributes(*attributes)
    attention, rows = attention_layer(emit, query, (key_cache, value_cache), num_heads, scale, causal=False)
    attention.mask = visible_slots_network(emit, cache_length, step_mask, int(key_cache.shape[2]))
    attention.key_value_lengths = attended_lengths(emit, cache_length, rows)
    return emit.from_heads(attention.get_output(0))


def visible_slots_network(
    emit: NetworkEmitter, cache_length: NetworkTensor, step_mask: NetworkTensor, capacity: int
) -> NetworkTensor:
    """Slots that every token of the step sees, bool [B,1,S,K].

    Not shared by the layers: TensorRT-RTX 1.7 fails to compile two attentions with lengths whose masks have a layer in common.
    It computes the masks of all layers in one kernel; each costs S*K bytes to write and to read.
    """
    slots = emit.constant(np.arange(capacity, dtype=np.int64).reshape(1, 1, -1))
    # [B,1,K]: index in the step of every slot; below zero in the part that was valid before.
    index = emit.elementwise("SUB", slots, emit.reshape(cache_length, (-1, 1, 1)))
    zero, one = (emit.constant(np.full((1, 1, 1), value, np.int64)) for value in (0, 1))
    step = emit.reshape(emit.extent(step_mask, 1), (1, 1, 1))
    within = emit.elementwise("MAX", zero, emit.elementwise("MIN", index, emit.elementwise("SUB", step, one)))
    gather = emit.network.add_gather_v2(step_mask, _per_query(emit, within, step_mask), emit.api.GatherMode.ELEMENT)
    gather.axis = 2
    is_cached, is_step = (emit.elementwise("LESS", index, bound) for bound in (zero, step))
    visible = emit.elementwise("OR", is_cached, emit.elementwise("AND", is_step, emit.output(gather)))
    return emit.reshape(visible, (0, 1, -1, capacity))


def _per_query(emit: NetworkEmitter, x: NetworkTensor, step_mask: NetworkTensor) -> NetworkTensor:
    """`x` [B,1,K] repeated to [B,S,K]: a slice that does not move along the middle axis."""
    layer = emit.network.add_slice(x, (0, 0, 0), (0, 0, 0), (1, 0, 1))
    layer.set_input(2, emit.sizes([emit.extent(x, 0), emit.extent(step_mask, 1), emit.extent(x, 2)]))
    return emit.output(layer)

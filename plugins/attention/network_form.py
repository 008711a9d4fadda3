"""`nemodiff::attention` as `IAttention`: fused, over the caches in place, with a length per sequence."""

from __future__ import annotations

from typing import Any

from nemodiff_trt.errors import LoweringError
from nemodiff_trt.plugins.attention.reference import AttentionAttributes
from nemodiff_trt.plugins.network_emitter import NetworkEmitter, NetworkTensor, NetworkValue


def attention_network(
    emit: NetworkEmitter,
    query: NetworkValue,
    key_cache: NetworkTensor,
    value_cache: NetworkTensor,
    cache_length: NetworkTensor,
    *attributes: Any,
) -> NetworkTensor:
    """Attend `query` [B,S,H*D], already scaled, to the first cache_length + S slots of the caches [B,G,K,D].

    `attributes` are those of `AttentionAttributes`.

    Raises:
        LoweringError: the operator still wants its scores scaled; the layer does not do that.
    """
    num_heads, causal, scale = AttentionAttributes(*attributes)
    attention, rows = attention_layer(emit, query, (key_cache, value_cache), num_heads, scale, causal)
    attention.key_value_lengths = attended_lengths(emit, cache_length, rows)
    return emit.from_heads(attention.get_output(0))


def attention_layer(
    emit: NetworkEmitter,
    query: NetworkValue,
    caches: tuple[NetworkTensor, NetworkTensor],
    num_heads: int,
    scale: float | None,
    causal: bool,
) -> tuple[Any, NetworkTensor]:
    """The fused layer of `query` [B,S,H*D] over key and value caches, without lengths or mask; and its queries [B,H,S,D].

    Raises:
        LoweringError: scores are to be scaled; the layer does not do that.
    """
    if scale != 1.0:
        raise LoweringError(f"attention asks for the scale {scale}; the pass scale_queries has to run before this lowering")
    api = emit.api
    rows = emit.heads(query, num_heads)
    alignment = api.CausalMaskKind.LOWER_RIGHT if causal else api.CausalMaskKind.NONE
    attention = emit.network.add_attention_v2(rows, *caches, api.AttentionNormalizationOp.SOFTMAX, alignment)
    # No kernel, no engine: taken apart, attention would read the whole capacity and write its scores to memory.
    attention.decomposable = False
    return attention, rows


def attended_lengths(emit: NetworkEmitter, cache_length: NetworkTensor, rows: NetworkTensor) -> NetworkTensor:
    """int32 [B]: cache_length + S, emitted once for all layers. `rows` is [B,H,S,D]."""

    def make() -> NetworkTensor:
        return emit.cast(emit.elementwise("SUM", cache_length, emit.extent(rows, 2)), emit.api.int32)

    return emit.once(("attended_lengths", cache_length.name), make)

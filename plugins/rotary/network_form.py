"""`nemodiff::rotary` as `IRotaryEmbeddingLayer`."""

from __future__ import annotations

from nemodiff_trt.plugins.network_emitter import Heads, NetworkEmitter, NetworkTensor, NetworkValue

_POSITIONS_INPUT = 3


def rotary_network(
    emit: NetworkEmitter, x: NetworkValue, cos: NetworkTensor, sin: NetworkTensor, positions: NetworkTensor, num_heads: int
) -> Heads:
    """Rotate `x` [B,S,N*D] by rows `positions` [B,S] of the tables [K,D/2], pairs half a head apart."""
    layer = emit.network.add_rotary_embedding(emit.heads(x, num_heads), cos, sin, False, 0)
    layer.set_input(_POSITIONS_INPUT, positions)
    return Heads(layer.get_output(0))

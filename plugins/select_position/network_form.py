"""`nemodiff::select_position` as a gather whose indices run along the batch."""

from __future__ import annotations

from nemodiff_trt.plugins.network_emitter import NetworkEmitter, NetworkTensor


def select_position_network(emit: NetworkEmitter, x: NetworkTensor, index: NetworkTensor) -> NetworkTensor:
    """Row `index` [B] of every sequence of `x` [B,S,N]: [B,1,N]."""
    layer = emit.network.add_gather_v2(x, emit.reshape(index, (-1, 1, 1)), emit.api.GatherMode.ND)
    layer.num_elementwise_dims = 1
    return emit.output(layer)

"""`nemodiff::step_positions` as a range added to every sequence's length."""

from __future__ import annotations

import numpy as np

from nemodiff_trt.plugins.network_emitter import NetworkEmitter, NetworkTensor


def step_positions_network(emit: NetworkEmitter, input_ids: NetworkTensor, cache_length: NetworkTensor) -> NetworkTensor:
    """Positions int64 [B,S] = cache_length [B,1] + [0 .. S-1]."""
    offsets = emit.network.add_fill((0,), emit.api.FillOperation.LINSPACE, emit.api.int64)
    # Length, first value, step: a shape tensor, a scalar, one number per axis.
    offsets.set_input(0, emit.extent(input_ids, 1))
    offsets.set_input(1, emit.constant(np.array(0, np.int64)))
    offsets.set_input(2, emit.constant(np.array([1], np.int64)))
    return emit.elementwise("SUM", emit.reshape(cache_length, (-1, 1)), emit.reshape(emit.output(offsets), (1, -1)))

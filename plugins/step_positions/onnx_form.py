"""`nemodiff::step_positions` as a range added to every sequence's length."""

from __future__ import annotations

import numpy as np

from nemodiff_trt.plugins.onnx_emitter import OnnxEmitter


def step_positions_onnx(emit: OnnxEmitter, input_ids: str, cache_length: str) -> str:
    """Positions int64 [B,S] = cache_length [B,1] + [0 .. S-1]."""
    zero, one = (emit.constant(np.array(value, dtype=np.int64)) for value in (0, 1))
    step = emit.op("Squeeze", [emit.size(input_ids, 1)])
    offsets = emit.op("Range", [zero, step, one])
    return emit.op("Add", [emit.op("Unsqueeze", [cache_length, emit.integers(1)]), offsets])

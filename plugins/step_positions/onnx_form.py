"""`nemodiff::step_positions` as a range added to every sequence's length."""

from __future__ import annotations

from nemodiff_trt.plugins.onnx_emitter import OnnxEmitter
from nemodiff_trt.plugins.onnx_logic import offsets


def step_positions_onnx(emit: OnnxEmitter, input_ids: str, cache_length: str) -> str:
    """Positions int64 [B,S] = cache_length [B,1] + [0 .. S-1]."""
    places = offsets(emit, emit.size(input_ids, 1))
    return emit.op("Add", [emit.op("Unsqueeze", [cache_length, emit.integers(1)]), places])

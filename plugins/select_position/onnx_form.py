"""`nemodiff::select_position` as ONNX `GatherND`."""

from __future__ import annotations

from nemodiff_trt.plugins.onnx_emitter import OnnxEmitter


def select_position_onnx(emit: OnnxEmitter, x: str, index: str) -> str:
    """Row `index` [B] of every sequence of `x` [B,S,N], as [B,1,N]."""
    return emit.op("GatherND", [x, emit.op("Unsqueeze", [index, emit.integers(1, 2)])], batch_dims=1)

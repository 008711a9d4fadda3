"""`nemodiff::rotary` as ONNX `RotaryEmbedding`, in its three-dimensional form."""

from __future__ import annotations

from nemodiff_trt.plugins.onnx_emitter import OnnxEmitter


def rotary_onnx(emit: OnnxEmitter, x: str, cos: str, sin: str, positions: str, num_heads: int) -> str:
    """Rotate `x` [B,S,N*D] by rows `positions` [B,S] of the tables [K,D/2]; no transposition is needed."""
    return emit.op("RotaryEmbedding", [x, cos, sin, positions], num_heads=num_heads, interleaved=0)

"""`nemodiff::round_to_fp8` in ONNX; the result equals the reference bit by bit."""

from __future__ import annotations

from nemodiff_trt.plugins.onnx_emitter import OnnxEmitter


def round_to_fp8_onnx(emit: OnnxEmitter, x: str, scale: str) -> str:
    """`x` fp32 [...,in] in the numbers of FP8."""
    return emit.op("Mul", [emit.through_e4m3(emit.op("Div", [x, scale])), scale])

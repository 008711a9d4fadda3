"""`nemodiff::round_to_nvfp4` in fp32 arithmetic that every ONNX runtime has; the result equals the reference bit by bit.

e2m1 has no cast on the CPU: between two powers of two its numbers are evenly spaced, so rounding to a multiple of the spacing
(0.5 below 2, 1 below 4, then 2) is enough, and `Round` takes ties to the even multiple, which is the even code.
"""

from __future__ import annotations

from nemodiff_trt.plugins.onnx_emitter import OnnxEmitter
from nemodiff_trt.quantization.formats import E2M1_MAX, E4M3_MAX
from nemodiff_trt.vocabulary import NVFP4_BLOCK


def round_to_nvfp4_onnx(emit: OnnxEmitter, x: str, global_scale: str) -> str:
    """`x` fp32 [B,S,in] in the numbers of NVFP4."""
    width = emit.value(x).shape[-1]
    blocks = emit.op("Reshape", [x, emit.integers(0, 0, -1, NVFP4_BLOCK)])
    magnitudes = emit.op("Abs", [blocks])
    amax = emit.op("ReduceMax", [magnitudes, emit.integers(-1)], keepdims=1)
    scales = emit.op("Div", [amax, emit.op("Mul", [emit.number(E2M1_MAX), global_scale])])
    scales = emit.op("Where", [emit.op("Equal", [scales, emit.number(0.0)]), emit.number(1.0), scales])
    scales = emit.through_e4m3(emit.op("Clip", [scales, emit.number(2.0**-9), emit.number(E4M3_MAX)]))
    steps = emit.op("Mul", [scales, global_scale])
    scaled = emit.op("Div", [magnitudes, steps])
    above_two = emit.op("GreaterOrEqual", [scaled, emit.number(2.0)])
    above_four = emit.op("GreaterOrEqual", [scaled, emit.number(4.0)])
    spacing = emit.op("Where", [above_two, emit.number(1.0), emit.number(0.5)])
    spacing = emit.op("Where", [above_four, emit.number(2.0), spacing])
    rounded = emit.op("Mul", [emit.op("Round", [emit.op("Div", [scaled, spacing])]), spacing])
    rounded = emit.op("Min", [rounded, emit.number(E2M1_MAX)])
    signed = emit.op("Mul", [emit.op("Mul", [rounded, steps]), emit.op("Sign", [blocks])])
    return emit.op("Reshape", [signed, emit.integers(0, 0, int(width))])

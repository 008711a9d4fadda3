"""Rounding to FP8 and NVFP4 in fp32 arithmetic that every ONNX runtime has; results equal the references bit by bit.

`Cast` to FLOAT8E4M3FN saturates and rounds ties to even, as the format asks for. e2m1 has no such cast on the CPU: between
two powers of two its numbers are evenly spaced, so rounding to a multiple of the spacing (0.5 below 2, 1 below 4, then 2) is
enough, and `Round` takes ties to the even multiple, which is the even code.
"""

from __future__ import annotations

import numpy as np
from onnx import TensorProto

from nemodiff_trt.plugins.onnx_emitter import OnnxEmitter
from nemodiff_trt.quantization.formats import E2M1_MAX, E4M3_MAX
from nemodiff_trt.vocabulary import NVFP4_BLOCK


def _number(emit: OnnxEmitter, value: float) -> str:
    return emit.constant(np.array(value, np.float32))


def _through_e4m3(emit: OnnxEmitter, x: str) -> str:
    narrow = emit.op("Cast", [x], to=TensorProto.FLOAT8E4M3FN, saturate=1)
    return emit.op("Cast", [narrow], to=TensorProto.FLOAT)


def round_to_fp8_onnx(emit: OnnxEmitter, x: str, scale: str) -> str:
    """`x` fp32 [...,in] in the numbers of FP8."""
    return emit.op("Mul", [_through_e4m3(emit, emit.op("Div", [x, scale])), scale])


def round_to_nvfp4_onnx(emit: OnnxEmitter, x: str, global_scale: str) -> str:
    """`x` fp32 [B,S,in] in the numbers of NVFP4."""
    width = emit.value(x).shape[-1]
    blocks = emit.op("Reshape", [x, emit.integers(0, 0, -1, NVFP4_BLOCK)])
    magnitudes = emit.op("Abs", [blocks])
    amax = emit.op("ReduceMax", [magnitudes, emit.integers(-1)], keepdims=1)
    scales = emit.op("Div", [amax, emit.op("Mul", [_number(emit, E2M1_MAX), global_scale])])
    scales = emit.op("Where", [emit.op("Equal", [scales, _number(emit, 0.0)]), _number(emit, 1.0), scales])
    scales = _through_e4m3(emit, emit.op("Clip", [scales, _number(emit, 2.0**-9), _number(emit, E4M3_MAX)]))
    steps = emit.op("Mul", [scales, global_scale])
    scaled = emit.op("Div", [magnitudes, steps])
    above_two = emit.op("GreaterOrEqual", [scaled, _number(emit, 2.0)])
    above_four = emit.op("GreaterOrEqual", [scaled, _number(emit, 4.0)])
    spacing = emit.op("Where", [above_two, _number(emit, 1.0), _number(emit, 0.5)])
    spacing = emit.op("Where", [above_four, _number(emit, 2.0), spacing])
    rounded = emit.op("Mul", [emit.op("Round", [emit.op("Div", [scaled, spacing])]), spacing])
    rounded = emit.op("Min", [rounded, _number(emit, E2M1_MAX)])
    signed = emit.op("Mul", [emit.op("Mul", [rounded, steps]), emit.op("Sign", [blocks])])
    return emit.op("Reshape", [signed, emit.integers(0, 0, int(width))])

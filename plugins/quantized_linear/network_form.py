"""FP8 and NVFP4 products on TensorRT's own layers: both operands reach the multiplication in the format.

FP8: TensorRT wants scales that are constants, or it multiplies in bf16. Quantising with a scale of one and multiplying before
and after leaves the real scales as inputs, in kernels that exist anyway: one plan serves every checkpoint.
NVFP4: block scales of the matrix have to be constants, as inputs they would be rearranged at every step; global scales too.
"""

from __future__ import annotations

import numpy as np

from nemodiff_trt.plugins.network_emitter import NetworkEmitter, NetworkTensor
from nemodiff_trt.vocabulary import NVFP4_BLOCK


def _product(emit: NetworkEmitter, x: NetworkTensor, matrix: NetworkTensor) -> NetworkTensor:
    operation = emit.api.MatrixOperation
    stacked = emit.reshape(matrix, (1, *tuple(matrix.shape)))
    return emit.output(emit.network.add_matrix_multiply(x, operation.NONE, stacked, operation.TRANSPOSE))


def _dequantize(emit: NetworkEmitter, x: NetworkTensor, scale: NetworkTensor, dtype: object) -> NetworkTensor:
    return emit.output(emit.network.add_dequantize(x, scale, dtype))


def fp8_linear_network(
    emit: NetworkEmitter, x: NetworkTensor, weight: NetworkTensor, weight_scale: NetworkTensor, input_scale: NetworkTensor
) -> NetworkTensor:
    """`x` [B,S,in] times `weight` fp8 [out,in] transposed; scales fp32 []."""
    api, network, dtype = emit.api, emit.network, x.dtype
    one = emit.once(("one",), lambda: emit.constant(np.array(1.0, np.float32)))
    wide = (1, 1, 1)
    scaled = emit.elementwise("DIV", emit.cast(x, api.float32), emit.reshape(input_scale, wide))
    narrow = emit.output(network.add_quantize(scaled, one, api.fp8))
    y = _product(emit, _dequantize(emit, narrow, one, dtype), _dequantize(emit, weight, one, dtype))
    scale = emit.elementwise("PROD", emit.reshape(input_scale, wide), emit.reshape(weight_scale, wide))
    return emit.cast(emit.elementwise("PROD", emit.cast(y, api.float32), scale), dtype)


def nvfp4_linear_network(
    emit: NetworkEmitter,
    x: NetworkTensor,
    payload: NetworkTensor,
    block_scales: NetworkTensor,
    weight_scale: NetworkTensor,
    input_scale: NetworkTensor,
) -> NetworkTensor:
    """`x` [B,S,in] times `payload` fp4 [out,in] transposed. Constants: block scales fp8 [out,in/16], global scales fp32 []."""
    api, network, dtype = emit.api, emit.network, x.dtype
    layer = network.add_dynamic_quantize(x, 2, NVFP4_BLOCK, api.fp4, api.fp8)
    layer.set_input(1, input_scale)
    input_steps = _dequantize(emit, emit.output(layer, 1), input_scale, dtype)
    weight_steps = _dequantize(emit, block_scales, weight_scale, dtype)
    return _product(
        emit, _dequantize(emit, emit.output(layer), input_steps, dtype), _dequantize(emit, payload, weight_steps, dtype)
    )

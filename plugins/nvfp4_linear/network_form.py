"""`nemodiff::nvfp4_linear` on TensorRT's own layers: both operands reach the multiplication in NVFP4.

Block scales of the matrix have to be constants, as inputs they would be rearranged at every step; global scales too.
"""

from __future__ import annotations

from nemodiff_trt.plugins.network_emitter import NetworkEmitter, NetworkTensor
from nemodiff_trt.vocabulary import NVFP4_BLOCK


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
    input_steps = emit.dequantize(emit.output(layer, 1), input_scale, dtype)
    weight_steps = emit.dequantize(block_scales, weight_scale, dtype)
    inputs, matrix = emit.dequantize(emit.output(layer), input_steps, dtype), emit.dequantize(payload, weight_steps, dtype)
    return emit.times_transposed(inputs, matrix)

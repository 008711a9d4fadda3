"""`nemodiff::fp8_linear` on TensorRT's own layers: both operands reach the multiplication in FP8.

TensorRT wants scales that are constants, or it multiplies in bf16. Quantising with a scale of one and multiplying before and
after leaves the real scales as inputs, in kernels that exist anyway: one plan serves every checkpoint.
"""

from __future__ import annotations

import numpy as np

from nemodiff_trt.plugins.network_emitter import NetworkEmitter, NetworkTensor


def fp8_linear_network(
    emit: NetworkEmitter, x: NetworkTensor, weight: NetworkTensor, weight_scale: NetworkTensor, input_scale: NetworkTensor
) -> NetworkTensor:
    """`x` [B,S,in] times `weight` fp8 [out,in] transposed; scales fp32 []."""
    api, network, dtype = emit.api, emit.network, x.dtype
    one = emit.once(("one",), lambda: emit.constant(np.array(1.0, np.float32)))
    wide = (1, 1, 1)
    scaled = emit.elementwise("DIV", emit.cast(x, api.float32), emit.reshape(input_scale, wide))
    narrow = emit.output(network.add_quantize(scaled, one, api.fp8))
    y = emit.times_transposed(emit.dequantize(narrow, one, dtype), emit.dequantize(weight, one, dtype))
    scale = emit.elementwise("PROD", emit.reshape(input_scale, wide), emit.reshape(weight_scale, wide))
    return emit.cast(emit.elementwise("PROD", emit.cast(y, api.float32), scale), dtype)

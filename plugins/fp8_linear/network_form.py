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
    scaled = emit.by_rows("DIV", emit.cast(x, api.float32), input_scale)
    narrow = emit.output(network.add_quantize(scaled, one, api.fp8))
    y = emit.times_transposed(emit.dequantize(narrow, one, dtype), emit.dequantize(weight, one, dtype))
    scale = emit.elementwise("PROD", input_scale, weight_scale)
    return emit.cast(emit.by_rows("PROD", emit.cast(y, api.float32), scale), dtype)

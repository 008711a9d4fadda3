"""`nemodiff::rms_norm` in element-wise layers around one reduction, which the compiler fuses into one kernel.

There is no layer for it: `INormalizationLayer` subtracts the mean.
"""

from __future__ import annotations

from nemodiff_trt.plugins.network_emitter import NetworkEmitter, NetworkTensor


def rms_norm_network(emit: NetworkEmitter, x: NetworkTensor, weight: NetworkTensor, eps: float) -> NetworkTensor:
    """Normalise `x` [B,S,N] in fp32, round to its dtype, scale by `weight` [N]."""
    wide = emit.cast(x, emit.api.float32)
    mean_square = emit.reduce_last("AVG", emit.elementwise("PROD", wide, wide))
    root = emit.unary("SQRT", emit.elementwise("SUM", mean_square, emit.scalar(eps, mean_square)))
    normalised = emit.cast(emit.elementwise("PROD", wide, emit.unary("RECIP", root)), x.dtype)
    return emit.scale_features(normalised, weight)

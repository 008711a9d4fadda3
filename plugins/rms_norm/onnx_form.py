"""`nemodiff::rms_norm` as ONNX `RMSNormalization`."""

from __future__ import annotations

from nemodiff_trt.plugins.onnx_emitter import OnnxEmitter


def rms_norm_onnx(emit: OnnxEmitter, x: str, weight: str, eps: float) -> str:
    """Normalise `x` [..., N] over its last axis; the mean is taken in fp32 (`stash_type` 1)."""
    return emit.op("RMSNormalization", [x, weight], axis=-1, epsilon=eps, stash_type=1)

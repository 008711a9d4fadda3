"""`nemodiff::cache_update` as ONNX `TensorScatter`, which an engine runs in place when input and output share a buffer."""

from __future__ import annotations

from nemodiff_trt.plugins.onnx_emitter import OnnxEmitter


def cache_update_onnx(emit: OnnxEmitter, cache: str, new: str, cache_length: str) -> str:
    """Write `new` [B,S,G*D] into `cache` [B,G,K,D] at each sequence's own `cache_length` [B]."""
    _, num_kv_heads, _, head_dim = emit.value(cache).shape
    # Reshape's 0 keeps the extent of the input axis.
    heads = emit.op("Reshape", [new, emit.integers(0, 0, int(num_kv_heads), int(head_dim))])
    rows = emit.op("Transpose", [heads], perm=[0, 2, 1, 3])
    return emit.op("TensorScatter", [cache, rows, cache_length], axis=2, mode="linear")

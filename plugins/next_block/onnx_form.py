"""`nemodiff::next_block` as a padding of the seeds."""

from __future__ import annotations

import numpy as np

from nemodiff_trt.plugins.onnx_emitter import OnnxEmitter


def next_block_onnx(emit: OnnxEmitter, seed: str, block_length: int, mask_token_id: int) -> str:
    """Blocks int64 [B,S] from `seed` [B]."""
    column = emit.op("Unsqueeze", [seed, emit.integers(1)])
    mask = emit.constant(np.array(mask_token_id, np.int64))
    return emit.op("Pad", [column, emit.integers(0, 0, 0, block_length - 1), mask])

"""`nemodiff::next_block` as a selection between the seeds and the mask id."""

from __future__ import annotations

import numpy as np

from nemodiff_trt.plugins.network_emitter import NetworkEmitter, NetworkTensor
from nemodiff_trt.plugins.network_logic import select


def next_block_network(emit: NetworkEmitter, seed: NetworkTensor, block_length: int, mask_token_id: int) -> NetworkTensor:
    """Blocks int64 [B,S] from `seed` [B]."""
    # Not a concatenation: this one has the batch as a free axis without a shape tensor.
    is_first = emit.constant(np.arange(block_length, dtype=np.int32).reshape(1, block_length) == 0)
    mask = emit.constant(np.full((1, 1), mask_token_id, np.int64))
    return select(emit, is_first, emit.reshape(seed, (-1, 1)), mask)

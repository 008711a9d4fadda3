"""`nemodiff::decision_head` in element-wise layers and reductions, which the compiler fuses.

Not `ITopKLayer`: which of equal logits it takes is not specified. The lowest index among those equal to the maximum is.
"""

from __future__ import annotations

import numpy as np

from nemodiff_trt.plugins.network_emitter import NetworkEmitter, NetworkTensor
from nemodiff_trt.plugins.network_logic import select


def decision_head_network(
    emit: NetworkEmitter, logits: NetworkTensor, mask_token_id: int
) -> tuple[NetworkTensor, NetworkTensor]:
    """Token int64 [B,S] and its probability fp32 [B,S] from `logits` [B,S,V]."""
    vocab_size = logits.shape[2]
    wide = emit.cast(logits, emit.api.float32)
    penalty = np.zeros((1, 1, vocab_size), np.float32)
    penalty[..., mask_token_id] = -np.inf
    candidates = emit.elementwise("SUM", wide, emit.constant(penalty))
    best = emit.reduce_last("MAX", candidates)
    ids = emit.constant(np.arange(vocab_size, dtype=np.int32).reshape(1, 1, vocab_size))
    # Where nothing equals the maximum, as in a row with a NaN, it is an id all the same: the token is looked up in a table.
    beyond = emit.constant(np.full((1, 1, 1), vocab_size - 1, np.int32))
    is_best = emit.elementwise("EQUAL", candidates, best)
    token = emit.reduce_last("MIN", select(emit, is_best, ids, beyond))
    # 1 / sum exp(x - best): the winner's own term is 1. A mask logit far above it makes the sum infinite, the probability 0.
    total = emit.reduce_last("SUM", emit.unary("EXP", emit.elementwise("SUB", wide, best)))
    confidence = emit.unary("RECIP", total)
    rows = (0, 0)
    return emit.cast(emit.reshape(token, rows), emit.api.int64), emit.reshape(confidence, rows)

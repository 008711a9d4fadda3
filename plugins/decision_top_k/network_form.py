"""`nemodiff::decision_top_k` in element-wise layers and reductions: the best one, k times.

Not `ITopKLayer`: which of equal logits it takes is not specified.
"""

from __future__ import annotations

import numpy as np

from nemodiff_trt.plugins.network_emitter import NetworkEmitter, NetworkTensor
from nemodiff_trt.plugins.network_logic import select


def decision_top_k_network(
    emit: NetworkEmitter, logits: NetworkTensor, mask_token_id: int, k: int
) -> tuple[NetworkTensor, NetworkTensor, NetworkTensor]:
    """Tokens int64 [B,S,k], probabilities fp32 [B,S,k], entropy fp32 [B,S] from `logits` [B,S,V]."""
    vocab_size = logits.shape[2]
    wide = emit.cast(logits, emit.api.float32)
    shifted = emit.elementwise("SUB", wide, emit.reduce_last("MAX", wide))
    weights = emit.unary("EXP", shifted)
    total = emit.reduce_last("SUM", weights)
    numbers = np.arange(vocab_size, dtype=np.int32).reshape(1, 1, vocab_size)
    ids, is_left = emit.constant(numbers), emit.constant(numbers != mask_token_id)
    # As in `decision_head_network`: an id all the same where nothing equals the maximum.
    beyond = emit.constant(np.full((1, 1, 1), vocab_size - 1, np.int32))
    nothing = emit.constant(np.full((1, 1, 1), -np.inf, np.float32))
    tokens, best = [], []
    for _ in range(k):
        largest = emit.reduce_last("MAX", select(emit, is_left, shifted, nothing))
        is_best = emit.elementwise("AND", emit.elementwise("EQUAL", shifted, largest), is_left)
        token = emit.reduce_last("MIN", select(emit, is_best, ids, beyond))
        is_left = emit.elementwise("AND", is_left, emit.unary("NOT", emit.elementwise("EQUAL", ids, token)))
        tokens.append(token)
        best.append(largest)
    zero = emit.constant(np.zeros((1, 1, 1), np.float32))
    has_weight = emit.elementwise("GREATER", weights, zero)
    terms = select(emit, has_weight, emit.elementwise("PROD", weights, shifted), zero)
    mean = emit.elementwise("DIV", emit.reduce_last("SUM", terms), total)
    entropy = emit.reshape(emit.elementwise("SUB", emit.unary("LOG", total), mean), (0, 0))
    probability = emit.elementwise("DIV", emit.unary("EXP", _joined(emit, best)), total)
    return emit.cast(_joined(emit, tokens), emit.api.int64), probability, entropy


def _joined(emit: NetworkEmitter, pieces: list[NetworkTensor]) -> NetworkTensor:
    """[B,S,1] each as [B,S,k]."""
    layer = emit.network.add_concatenation(pieces)
    layer.axis = 2
    return emit.output(layer)

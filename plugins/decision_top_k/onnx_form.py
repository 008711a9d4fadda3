"""`nemodiff::decision_top_k` in standard ONNX operators, fp32 whatever the logits are."""

from __future__ import annotations

import numpy as np
import onnx

from nemodiff_trt.plugins.onnx_emitter import OnnxEmitter


def decision_top_k_onnx(emit: OnnxEmitter, logits: str, mask_token_id: int, k: int) -> tuple[str, str, str]:
    """Tokens int64 [B,S,k], probabilities fp32 [B,S,k], entropy fp32 [B,S] from `logits` [B,S,V]."""
    vocab_size = int(emit.value(logits).shape[2])
    wide = logits
    if emit.value(logits).dtype != "float32":
        wide = emit.op("Cast", [logits], to=onnx.TensorProto.FLOAT)
    last = emit.integers(-1)
    bounds = ((0, mask_token_id), (mask_token_id + 1, vocab_size))
    halves = [emit.op("Slice", [wide, emit.integers(start), emit.integers(end), last]) for start, end in bounds if start < end]
    # `TopK` puts the lower index first where candidates are equal.
    best, places = emit.ops("TopK", [emit.op("Concat", halves, axis=-1), emit.integers(k)], 2, axis=-1, largest=1, sorted=1)
    is_before = emit.op("Less", [places, emit.integers(mask_token_id)])
    token = emit.op("Where", [is_before, places, emit.op("Add", [places, emit.integers(1)])])
    log_sum = emit.op("ReduceLogSumExp", [wide, last], keepdims=1)
    probability = emit.op("Exp", [emit.op("Sub", [best, log_sum])])
    logarithms = emit.op("Sub", [wide, log_sum])
    weights = emit.op("Exp", [logarithms])
    zero = emit.constant(np.zeros(1, np.float32))
    # What has no weight adds nothing, though its logarithm is infinite.
    terms = emit.op("Where", [emit.op("Equal", [weights, zero]), zero, emit.op("Mul", [weights, logarithms])])
    return token, probability, emit.op("Neg", [emit.op("ReduceSum", [terms, last], keepdims=0)])

"""`nemodiff::decision_head` in standard ONNX operators, fp32 whatever the logits are."""

from __future__ import annotations

import numpy as np
import onnx

from nemodiff_trt.plugins.onnx_emitter import OnnxEmitter


def decision_head_onnx(emit: OnnxEmitter, logits: str, mask_token_id: int) -> tuple[str, str]:
    """Token int64 [B,S] and its probability fp32 [B,S] from `logits` [B,S,V].

    The mask id gets -inf before the argmax, whose ties go to the lowest id, and keeps its logit in the log-sum-exp.
    """
    vocab_size = int(emit.value(logits).shape[2])
    wide = logits
    if emit.value(logits).dtype != "float32":
        wide = emit.op("Cast", [logits], to=onnx.TensorProto.FLOAT)
    # Made of three scalars, not stored: a runtime folds it into one vector when it loads the graph.
    zeros = emit.op("Expand", [emit.constant(np.zeros(1, np.float32)), emit.integers(vocab_size)])
    minus_infinity = emit.constant(np.array([-np.inf], np.float32))
    penalty = emit.op("ScatterElements", [zeros, emit.integers(mask_token_id), minus_infinity], axis=0)
    best = emit.op("ArgMax", [emit.op("Add", [wide, penalty])], axis=-1, keepdims=1, select_last_index=0)
    last = emit.integers(-1)
    log_sum = emit.op("ReduceLogSumExp", [wide, last], keepdims=1)
    log_probability = emit.op("Sub", [emit.op("GatherElements", [wide, best], axis=-1), log_sum])
    token, confidence = (emit.op("Squeeze", [value, last]) for value in (best, emit.op("Exp", [log_probability])))
    return token, confidence

"""Comparisons and counts over the tokens of a block, in standard ONNX operators. All numbers are int64."""

from __future__ import annotations

import numpy as np
import onnx

from nemodiff_trt.plugins.onnx_emitter import OnnxEmitter


def offsets(emit: OnnxEmitter, extent: str) -> str:
    """[N]: 0 .. N-1 for `extent` [1]."""
    zero, one = (emit.constant(np.array(value, dtype=np.int64)) for value in (0, 1))
    return emit.op("Range", [zero, emit.op("Squeeze", [extent]), one])


def count(emit: OnnxEmitter, flags: str) -> str:
    """How many of the last axis are set; the axis goes."""
    return emit.op("ReduceSum", [emit.op("Cast", [flags], to=onnx.TensorProto.INT64), emit.integers(-1)], keepdims=0)


def first(emit: OnnxEmitter, flags: str, places: str, otherwise: str, keepdims: int = 0) -> str:
    """Place of the first flag of the last axis that is set, `otherwise` where there is none."""
    return emit.op("ReduceMin", [emit.op("Where", [flags, places, otherwise]), emit.integers(-1)], keepdims=keepdims)


def matched_drafts(emit: OnnxEmitter, is_wrong: str, block: str) -> str:
    """[B,1]: drafts before the first wrong one, S-1 if all are right; `is_wrong` bool [B,S-1] of `block` [B,S]."""
    last = emit.op("Sub", [emit.size(block, 1), emit.integers(1)])
    wrong = emit.op("Where", [is_wrong, offsets(emit, last), last])
    # A block of the seed alone has no draft: the last offset stands beside them, so that there is always a minimum.
    column = emit.op("Expand", [last, emit.op("Concat", [emit.size(block, 0), emit.integers(1)], axis=0)])
    return emit.op("ReduceMin", [emit.op("Concat", [wrong, column], axis=1), emit.integers(-1)], keepdims=1)

"""`nemodiff::accept_draft` in standard ONNX operators."""

from __future__ import annotations

import numpy as np
import onnx

from nemodiff_trt.plugins.accept_draft.reference import NO_TOKEN
from nemodiff_trt.plugins.onnx_emitter import OnnxEmitter


def accept_draft_onnx(
    emit: OnnxEmitter, block: str, verified: str, cache_length: str, remaining: str, end_token_ids: str
) -> tuple[str, ...]:
    """The six results of `accept_draft_reference`."""
    axis = emit.integers(1)
    drafts = emit.op("Slice", [block, emit.integers(1), emit.integers(np.iinfo(np.int64).max), axis])
    checked = emit.op("Slice", [verified, emit.integers(0), emit.integers(-1), axis])
    # All agree up to here: the product of flags is 1 as long as every draft before was right.
    is_equal = emit.op("Cast", [emit.op("Equal", [drafts, checked])], to=onnx.TensorProto.INT64)
    step = emit.size(block, 1)
    places = row_offsets(emit, emit.op("Sub", [step, emit.integers(1)]))
    wrong = emit.op("Where", [emit.op("Equal", [is_equal, emit.integers(0)]), places, emit.op("Sub", [step, emit.integers(1)])])
    # A block of the seed alone has no draft: the last offset stands beside them, so that there is always a minimum.
    last = emit.op("Expand", [emit.op("Sub", [step, emit.integers(1)]), _column_shape(emit, block)])
    matched = emit.op("ReduceMin", [emit.op("Concat", [wrong, last], axis=1), emit.integers(-1)], keepdims=1)
    seed = emit.op("Slice", [block, emit.integers(0), emit.integers(1), axis])
    return emit_candidates_onnx(emit, (seed, verified, matched), step, (cache_length, remaining, end_token_ids))


def emit_candidates_onnx(
    emit: OnnxEmitter, rows: tuple[str, str, str], step: str, state: tuple[str, str, str]
) -> tuple[str, ...]:
    """`emit_candidates` in ONNX.

    Args:
        emit: takes the nodes.
        rows: seed [B,1], candidates [B,S] and matched drafts [B,1].
        step: int64 [1], S.
        state: cache length [B], tokens that may still be emitted [B], ids that end a row [E].
    """
    seed, candidates, matched = rows
    cache_length, remaining, end_token_ids = state
    zero, one, last_axis = emit.integers(0), emit.integers(1), emit.integers(-1)
    places = row_offsets(emit, step)
    is_end = emit.op("Equal", [emit.op("Unsqueeze", [candidates, emit.integers(2)]), end_token_ids])
    num_ends = emit.op("ReduceSum", [emit.op("Cast", [is_end], to=onnx.TensorProto.INT64), last_axis], keepdims=0)
    ends = emit.op("Where", [emit.op("Greater", [num_ends, zero]), places, step])
    first_end = emit.op("ReduceMin", [ends, last_axis], keepdims=1)
    left = emit.op("Max", [emit.op("Unsqueeze", [remaining, one]), zero])
    count = emit.op("Min", [emit.op("Add", [emit.op("Min", [matched, first_end]), one]), left])
    emitted = emit.op("Where", [emit.op("Less", [places, count]), candidates, emit.integers(NO_TOKEN)])
    newest = emit.op("Max", [emit.op("Sub", [count, one]), zero])
    last = emit.op("GatherElements", [candidates, newest], axis=1)
    next_seed = emit.op("Where", [emit.op("Greater", [count, zero]), last, seed])
    rest = emit.op("Where", [emit.op("Less", [first_end, count]), zero, emit.op("Sub", [left, count])])
    accepted = emit.op("Min", [count, matched])
    accepted, number, next_seed, rest = (emit.op("Squeeze", [x, one]) for x in (accepted, count, next_seed, rest))
    return accepted, emitted, number, next_seed, emit.op("Add", [cache_length, number]), rest


def row_offsets(emit: OnnxEmitter, extent: str) -> str:
    """int64 [N]: 0 .. N-1 for `extent` [1]."""
    zero, one = (emit.constant(np.array(value, dtype=np.int64)) for value in (0, 1))
    return emit.op("Range", [zero, emit.op("Squeeze", [extent]), one])


def _column_shape(emit: OnnxEmitter, block: str) -> str:
    """int64 [2]: B, 1."""
    return emit.op("Concat", [emit.size(block, 0), emit.integers(1)], axis=0)

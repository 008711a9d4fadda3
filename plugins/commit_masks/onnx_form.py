"""`nemodiff::commit_masks` in standard ONNX operators: ranks by comparing every position of a block with every other."""

from __future__ import annotations

import numpy as np
import onnx

from nemodiff_trt.plugins.commit_masks.reference import KNOWN, UNSURE
from nemodiff_trt.plugins.onnx_emitter import OnnxEmitter


def commit_masks_onnx(
    emit: OnnxEmitter,
    block: str,
    token: str,
    confidence: str,
    quota: str,
    *decisions: int | float | None,
) -> tuple[str, str, str, str]:
    """Block int64 [B,S], number fixed, masks left and end offset, int64 [B].

    `decisions` are mask id, end-of-sequence id and threshold; see `commit_masks_reference`.
    """
    mask_token_id, eos_token_id, threshold = (*decisions, None)[:3]
    mask = emit.integers(int(mask_token_id or 0))
    masked = emit.op("And", [emit.op("Equal", [block, mask]), emit.op("Unsqueeze", [_positive(emit, quota), emit.integers(1)])])
    sure = emit.op("Where", [emit.op("IsNaN", [confidence]), _number(emit, UNSURE), confidence])
    score = emit.op("Where", [masked, sure, _number(emit, KNOWN)])
    commit = emit.op("Less", [_rank(emit, score, block), emit.op("Unsqueeze", [quota, emit.integers(1)])])
    if threshold is not None:
        commit = emit.op("Or", [commit, emit.op("GreaterOrEqual", [score, _number(emit, threshold)])])
    commit = emit.op("And", [commit, masked])
    ids = emit.op("Where", [commit, token, block])
    is_mask = emit.op("Equal", [ids, mask])
    step = emit.size(block, 1)
    offsets = _offsets(emit, block)
    first_mask = _first(emit, is_mask, offsets, step)
    is_end = emit.op("And", [emit.op("Equal", [ids, emit.integers(int(eos_token_id or 0))]), _positive(emit, offsets)])
    first_end = _first(emit, is_end, offsets, step)
    end = emit.op("Where", [emit.op("Less", [first_end, first_mask]), first_end, step])
    return ids, _count(emit, commit), _count(emit, is_mask), end


def _number(emit: OnnxEmitter, value: float) -> str:
    return emit.constant(np.array([value], np.float32))


def _positive(emit: OnnxEmitter, x: str) -> str:
    return emit.op("Greater", [x, emit.integers(0)])


def _offsets(emit: OnnxEmitter, block: str) -> str:
    """int64 [S]: 0 .. S-1."""
    zero, one = (emit.constant(np.array(value, dtype=np.int64)) for value in (0, 1))
    return emit.op("Range", [zero, emit.op("Squeeze", [emit.size(block, 1)]), one])


def _rank(emit: OnnxEmitter, score: str, block: str) -> str:
    """int64 [B,S]: how many positions of the block come before each one."""
    offsets = _offsets(emit, block)
    mine, other = emit.op("Unsqueeze", [score, emit.integers(2)]), emit.op("Unsqueeze", [score, emit.integers(1)])
    is_left = emit.op(
        "Less", [emit.op("Unsqueeze", [offsets, emit.integers(0)]), emit.op("Unsqueeze", [offsets, emit.integers(1)])]
    )
    tied = emit.op("And", [emit.op("Equal", [other, mine]), is_left])
    ahead = emit.op("Or", [emit.op("Greater", [other, mine]), tied])
    return _count(emit, ahead)


def _count(emit: OnnxEmitter, flags: str) -> str:
    """int64: how many of the last axis are set."""
    return emit.op("ReduceSum", [emit.op("Cast", [flags], to=onnx.TensorProto.INT64), emit.integers(-1)], keepdims=0)


def _first(emit: OnnxEmitter, flags: str, offsets: str, step: str) -> str:
    """int64 [B]: offset of the first set flag, S where there is none."""
    return emit.op("ReduceMin", [emit.op("Where", [flags, offsets, step]), emit.integers(-1)], keepdims=0)

"""`nemodiff::commit_masks` in standard ONNX operators: ranks by comparing every position of a block with every other."""

from __future__ import annotations

from nemodiff_trt.plugins.commit_masks.reference import KNOWN, UNSURE
from nemodiff_trt.plugins.onnx_emitter import OnnxEmitter
from nemodiff_trt.plugins.onnx_logic import count, first, offsets


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
    sure = emit.op("Where", [emit.op("IsNaN", [confidence]), emit.number(UNSURE), confidence])
    score = emit.op("Where", [masked, sure, emit.number(KNOWN)])
    commit = emit.op("Less", [_rank(emit, score, block), emit.op("Unsqueeze", [quota, emit.integers(1)])])
    if threshold is not None:
        commit = emit.op("Or", [commit, emit.op("GreaterOrEqual", [score, emit.number(threshold)])])
    commit = emit.op("And", [commit, masked])
    ids = emit.op("Where", [commit, token, block])
    is_mask = emit.op("Equal", [ids, mask])
    step = emit.size(block, 1)
    places = offsets(emit, step)
    first_mask = first(emit, is_mask, places, step)
    is_end = emit.op("And", [emit.op("Equal", [ids, emit.integers(int(eos_token_id or 0))]), _positive(emit, places)])
    first_end = first(emit, is_end, places, step)
    end = emit.op("Where", [emit.op("Less", [first_end, first_mask]), first_end, step])
    return ids, count(emit, commit), count(emit, is_mask), end


def _positive(emit: OnnxEmitter, x: str) -> str:
    return emit.op("Greater", [x, emit.integers(0)])


def _rank(emit: OnnxEmitter, score: str, block: str) -> str:
    """int64 [B,S]: how many positions of the block come before each one."""
    places = offsets(emit, emit.size(block, 1))
    mine, other = emit.op("Unsqueeze", [score, emit.integers(2)]), emit.op("Unsqueeze", [score, emit.integers(1)])
    is_left = emit.op(
        "Less", [emit.op("Unsqueeze", [places, emit.integers(0)]), emit.op("Unsqueeze", [places, emit.integers(1)])]
    )
    tied = emit.op("And", [emit.op("Equal", [other, mine]), is_left])
    ahead = emit.op("Or", [emit.op("Greater", [other, mine]), tied])
    return count(emit, ahead)

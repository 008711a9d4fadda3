"""`nemodiff::accept_draft` in standard ONNX operators."""

from __future__ import annotations

import numpy as np

from nemodiff_trt.plugins.accept_draft.reference import NO_TOKEN
from nemodiff_trt.plugins.onnx_emitter import OnnxEmitter
from nemodiff_trt.plugins.onnx_logic import count, first, matched_drafts, offsets


def accept_draft_onnx(
    emit: OnnxEmitter, block: str, verified: str, cache_length: str, remaining: str, end_token_ids: str
) -> tuple[str, ...]:
    """The six results of `accept_draft_reference`."""
    axis = emit.integers(1)
    drafts = emit.op("Slice", [block, emit.integers(1), emit.integers(np.iinfo(np.int64).max), axis])
    checked = emit.op("Slice", [verified, emit.integers(0), emit.integers(-1), axis])
    matched = matched_drafts(emit, emit.op("Not", [emit.op("Equal", [drafts, checked])]), block)
    seed = emit.op("Slice", [block, emit.integers(0), emit.integers(1), axis])
    return emit_candidates_onnx(emit, (seed, verified, matched), emit.size(block, 1), (cache_length, remaining, end_token_ids))


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
    zero, one = emit.integers(0), emit.integers(1)
    places = offsets(emit, step)
    is_end = emit.op("Equal", [emit.op("Unsqueeze", [candidates, emit.integers(2)]), end_token_ids])
    first_end = first(emit, emit.op("Greater", [count(emit, is_end), zero]), places, step, keepdims=1)
    left = emit.op("Max", [emit.op("Unsqueeze", [remaining, one]), zero])
    number = emit.op("Min", [emit.op("Add", [emit.op("Min", [matched, first_end]), one]), left])
    emitted = emit.op("Where", [emit.op("Less", [places, number]), candidates, emit.integers(NO_TOKEN)])
    newest = emit.op("Max", [emit.op("Sub", [number, one]), zero])
    last = emit.op("GatherElements", [candidates, newest], axis=1)
    next_seed = emit.op("Where", [emit.op("Greater", [number, zero]), last, seed])
    rest = emit.op("Where", [emit.op("Less", [first_end, number]), zero, emit.op("Sub", [left, number])])
    accepted = emit.op("Min", [number, matched])
    accepted, number, next_seed, rest = (emit.op("Squeeze", [x, one]) for x in (accepted, number, next_seed, rest))
    return accepted, emitted, number, next_seed, emit.op("Add", [cache_length, number]), rest

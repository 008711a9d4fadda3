"""`nemodiff::accept_draft_sampled` in standard ONNX operators."""

from __future__ import annotations

import numpy as np
import onnx

from nemodiff_trt.plugins.accept_draft.onnx_form import emit_candidates_onnx
from nemodiff_trt.plugins.onnx_emitter import OnnxEmitter
from nemodiff_trt.plugins.onnx_logic import matched_drafts, offsets


def accept_draft_sampled_onnx(
    emit: OnnxEmitter,
    block: str,
    draft_probabilities: str,
    verify_probabilities: str,
    uniforms: str,
    *state: str,
) -> tuple[str, ...]:
    """The six results of `accept_draft_sampled_reference`; `state` as there."""
    cache_length, remaining, end_token_ids = state
    one, step = emit.integers(1), emit.size(block, 1)
    end = emit.integers(np.iinfo(np.int64).max)
    drafts = emit.op("Slice", [block, one, end, one])
    index = emit.op("Unsqueeze", [drafts, emit.integers(2)])
    p, q = (emit.op("GatherElements", [x, index], axis=2) for x in (_heads(emit, verify_probabilities), draft_probabilities))
    p, q = (emit.op("Squeeze", [x, emit.integers(2)]) for x in (p, q))
    refused = emit.op("GreaterOrEqual", [emit.op("Mul", [_heads(emit, uniforms), q]), p])
    matched = matched_drafts(emit, refused, block)
    zero = emit.constant(np.zeros(1, emit.value(verify_probabilities).dtype))
    weights = _residual(emit, (draft_probabilities, verify_probabilities), matched, zero)
    own = _draw(emit, weights, _tail(emit, uniforms), zero)
    moved = emit.op("Concat", [drafts, own], axis=1)
    candidates = emit.op("Where", [emit.op("Equal", [offsets(emit, step), matched]), own, moved])
    seed = emit.op("Slice", [block, emit.integers(0), one, one])
    return emit_candidates_onnx(emit, (seed, candidates, matched), step, (cache_length, remaining, end_token_ids))


def _heads(emit: OnnxEmitter, x: str) -> str:
    """All but the last of axis 1."""
    return emit.op("Slice", [x, emit.integers(0), emit.integers(-1), emit.integers(1)])


def _tail(emit: OnnxEmitter, x: str) -> str:
    """The last of axis 1, which stays with extent 1."""
    return emit.op("Slice", [x, emit.integers(-1), emit.integers(np.iinfo(np.int64).max), emit.integers(1)])


def _residual(emit: OnnxEmitter, distributions: tuple[str, str], matched: str, zero: str) -> str:
    """(p - q)+ [B,V] at the offset `matched` [B,1], p where that is all zeros; behind the last draft q is zero."""
    q, p = distributions
    nothing = emit.op("Mul", [_tail(emit, p), zero])
    target, drafted = (emit.op("GatherND", [x, matched], batch_dims=1) for x in (p, emit.op("Concat", [q, nothing], axis=1)))
    rest = emit.op("Max", [emit.op("Sub", [target, drafted]), zero])
    total = emit.op("ReduceSum", [rest, emit.integers(-1)], keepdims=1)
    return emit.op("Where", [emit.op("Greater", [total, zero]), rest, target])


def _draw(emit: OnnxEmitter, weights: str, uniform: str, zero: str) -> str:
    """Ids int64 [B,1] drawn from `weights` [B,V] with `uniform` [B,1]."""
    running = emit.op("CumSum", [weights, emit.constant(np.array(1, np.int64))])
    goal = emit.op("Mul", [uniform, _tail(emit, running)])
    is_before = emit.op("Cast", [emit.op("LessOrEqual", [running, goal])], to=onnx.TensorProto.INT64)
    token = emit.op("ReduceSum", [is_before, emit.integers(-1)], keepdims=1)
    # Rounding may leave every running sum below the goal: then it is the last id that has any weight.
    has_weight = emit.op("Cast", [emit.op("Greater", [weights, zero])], to=onnx.TensorProto.INT64)
    last = emit.op("ArgMax", [has_weight], axis=1, keepdims=1, select_last_index=1)
    return emit.op("Min", [token, last])

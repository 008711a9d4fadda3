"""`nemodiff::accept_draft_sampled` in TensorRT layers."""

from __future__ import annotations

import numpy as np

from nemodiff_trt.plugins import network_logic as logic
from nemodiff_trt.plugins.accept_draft.network_form import at_offsets, emit_candidates_network
from nemodiff_trt.plugins.network_emitter import NetworkEmitter, NetworkTensor


def accept_draft_sampled_network(
    emit: NetworkEmitter,
    block: NetworkTensor,
    draft_probabilities: NetworkTensor,
    verify_probabilities: NetworkTensor,
    uniforms: NetworkTensor,
    *state: NetworkTensor,
) -> tuple[NetworkTensor, ...]:
    """The six results of `accept_draft_sampled_reference`; probabilities fp32, `state` as there."""
    cache_length, remaining, end_token_ids = state
    drafts, places, one = logic.small(emit, block), logic.offsets(emit, block), logic.integer(emit, 1)
    last = emit.elementwise("SUB", logic.step_length(emit, block), one)
    moved = at_offsets(emit, drafts, emit.elementwise("MIN", emit.elementwise("SUM", places, one), last))
    # The last row of q stands twice, so that q has a row beside every one of p; the one behind the drafts is not looked at.
    drafted = at_offsets(emit, draft_probabilities, emit.elementwise("MIN", places, emit.elementwise("SUB", last, one)))
    p, q = (_of_tokens(emit, x, moved) for x in (verify_probabilities, drafted))
    # Not `p <= u q`: that is no operation here.
    is_kept = emit.elementwise("LESS", emit.elementwise("PROD", uniforms, q), p)
    is_last = emit.elementwise("EQUAL", places, last)
    matched = logic.first(emit, emit.elementwise("OR", emit.unary("NOT", is_kept), is_last), block)
    target, rest = (_at_row(emit, x, matched) for x in (verify_probabilities, drafted))
    is_behind = emit.elementwise("EQUAL", matched, last)
    rest = logic.select(emit, is_behind, logic.number(emit, 0.0), rest)
    own = _draw(emit, _residual(emit, target, rest), at_offsets(emit, uniforms, last))
    candidates = logic.select(emit, emit.elementwise("EQUAL", places, matched), own, moved)
    seed = at_offsets(emit, drafts, logic.integer(emit, 0))
    return emit_candidates_network(emit, (seed, candidates, matched), block, (cache_length, remaining, end_token_ids))


def _of_tokens(emit: NetworkEmitter, probabilities: NetworkTensor, tokens: NetworkTensor) -> NetworkTensor:
    """Probability [B,S] of `tokens` int32 [B,S] in `probabilities` [B,S,V]."""
    layer = emit.network.add_gather_v2(probabilities, emit.reshape(tokens, (0, 0, 1)), emit.api.GatherMode.ND)
    layer.num_elementwise_dims = 2
    return emit.output(layer)


def _at_row(emit: NetworkEmitter, probabilities: NetworkTensor, row: NetworkTensor) -> NetworkTensor:
    """Row `row` int32 [B,1] of every `probabilities` [B,S,V]: [B,V]."""
    layer = emit.network.add_gather_v2(probabilities, row, emit.api.GatherMode.ND)
    layer.num_elementwise_dims = 1
    return emit.output(layer)


def _residual(emit: NetworkEmitter, p: NetworkTensor, q: NetworkTensor) -> NetworkTensor:
    """(p - q)+ [B,V], p where that is nothing but zeros."""
    zero = logic.number(emit, 0.0)
    rest = emit.elementwise("MAX", emit.elementwise("SUB", p, q), zero)
    return logic.select(emit, emit.elementwise("GREATER", emit.reduce_last("MAX", rest), zero), rest, p)


def _draw(emit: NetworkEmitter, weights: NetworkTensor, uniform: NetworkTensor) -> NetworkTensor:
    """Ids int32 [B,1] drawn from `weights` [B,V] with `uniform` [B,1]."""
    axis = emit.constant(np.array(1, np.int32))
    running = emit.output(emit.network.add_cumulative(weights, axis, emit.api.CumulativeOperation.SUM, False, False))
    # Running sums do not fall: the last one is the largest.
    goal = emit.elementwise("PROD", uniform, emit.reduce_last("MAX", running))
    token = logic.count(emit, emit.unary("NOT", emit.elementwise("GREATER", running, goal)))
    # Rounding may leave every running sum below the goal: then it is the last id that has any weight.
    ids = emit.constant(np.arange(weights.shape[1], dtype=np.int32).reshape(1, -1))
    has_weight = emit.elementwise("GREATER", weights, logic.number(emit, 0.0))
    last = emit.reduce_last("MAX", logic.select(emit, has_weight, ids, logic.integer(emit, 0)))
    return emit.elementwise("MIN", token, last)

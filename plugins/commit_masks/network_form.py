"""`nemodiff::commit_masks` in TensorRT layers: ranks by comparing every position of a block with every other."""

from __future__ import annotations

from nemodiff_trt.plugins import network_logic as logic
from nemodiff_trt.plugins.commit_masks.reference import KNOWN, UNSURE
from nemodiff_trt.plugins.network_emitter import NetworkEmitter, NetworkTensor


def commit_masks_network(
    emit: NetworkEmitter,
    block: NetworkTensor,
    token: NetworkTensor,
    confidence: NetworkTensor,
    quota: NetworkTensor,
    *decisions: int | float | None,
) -> tuple[NetworkTensor, ...]:
    """Block int64 [B,S], number fixed, masks left and end offset, int64 [B].

    `decisions` are mask id, end-of-sequence id and threshold; see `commit_masks_reference`.
    """
    mask_token_id, eos_token_id, threshold = (*decisions, None)[:3]
    ids, predicted = logic.small(emit, block), logic.small(emit, token)
    quotas, zero = logic.column(emit, quota), logic.integer(emit, 0)
    mask = logic.integer(emit, int(mask_token_id or 0))
    masked = emit.elementwise("AND", emit.elementwise("EQUAL", ids, mask), emit.elementwise("GREATER", quotas, zero))
    # A NaN is not equal to itself.
    is_number = emit.elementwise("EQUAL", confidence, confidence)
    sure = logic.select(emit, is_number, confidence, logic.number(emit, UNSURE))
    score = logic.select(emit, masked, sure, logic.number(emit, KNOWN))
    commit = emit.elementwise("LESS", _rank(emit, score, block), quotas)
    if threshold is not None:
        is_below = emit.elementwise("LESS", score, logic.number(emit, threshold))
        commit = emit.elementwise("OR", commit, emit.unary("NOT", is_below))
    commit = emit.elementwise("AND", commit, masked)
    ids = logic.select(emit, commit, predicted, ids)
    is_mask = emit.elementwise("EQUAL", ids, mask)
    is_behind = emit.elementwise("GREATER", logic.offsets(emit, block), zero)
    is_end = emit.elementwise("AND", emit.elementwise("EQUAL", ids, logic.integer(emit, int(eos_token_id or 0))), is_behind)
    first_mask, first_end = logic.first(emit, is_mask, block), logic.first(emit, is_end, block)
    end = logic.select(emit, emit.elementwise("LESS", first_end, first_mask), first_end, logic.step_length(emit, block))
    numbers = (logic.count(emit, commit), logic.count(emit, is_mask), end)
    return emit.cast(ids, emit.api.int64), *(logic.long_vector(emit, value) for value in numbers)


def _rank(emit: NetworkEmitter, score: NetworkTensor, block: NetworkTensor) -> NetworkTensor:
    """int32 [B,S]: how many positions of the block come before each one."""
    mine, other = emit.reshape(score, (0, -1, 1)), emit.reshape(score, (0, 1, -1))
    places = logic.offsets(emit, block)
    is_left = emit.elementwise("LESS", emit.reshape(places, (1, 1, -1)), emit.reshape(places, (1, -1, 1)))
    tied = emit.elementwise("AND", emit.elementwise("EQUAL", other, mine), is_left)
    ahead = emit.elementwise("OR", emit.elementwise("GREATER", other, mine), tied)
    return emit.reshape(logic.count(emit, ahead), (0, -1))

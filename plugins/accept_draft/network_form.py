"""`nemodiff::accept_draft` in TensorRT layers."""

from __future__ import annotations

from nemodiff_trt.plugins import network_logic as logic
from nemodiff_trt.plugins.accept_draft.reference import NO_TOKEN
from nemodiff_trt.plugins.network_emitter import NetworkEmitter, NetworkTensor


def accept_draft_network(
    emit: NetworkEmitter,
    block: NetworkTensor,
    verified: NetworkTensor,
    cache_length: NetworkTensor,
    remaining: NetworkTensor,
    end_token_ids: NetworkTensor,
) -> tuple[NetworkTensor, ...]:
    """The six results of `accept_draft_reference`."""
    drafts, own = logic.small(emit, block), logic.small(emit, verified)
    places, one = logic.offsets(emit, block), logic.integer(emit, 1)
    last = emit.elementwise("SUB", logic.step_length(emit, block), one)
    # Every draft beside the verifier's token for its place: the block moved left by one, whose last column does not count.
    moved = at_offsets(emit, drafts, emit.elementwise("MIN", emit.elementwise("SUM", places, one), last))
    is_last = emit.elementwise("EQUAL", places, last)
    is_wrong = emit.elementwise("OR", emit.unary("NOT", emit.elementwise("EQUAL", moved, own)), is_last)
    matched = logic.first(emit, is_wrong, block)
    seed = at_offsets(emit, drafts, logic.integer(emit, 0))
    return emit_candidates_network(emit, (seed, own, matched), block, (cache_length, remaining, end_token_ids))


def emit_candidates_network(
    emit: NetworkEmitter,
    rows: tuple[NetworkTensor, NetworkTensor, NetworkTensor],
    block: NetworkTensor,
    state: tuple[NetworkTensor, NetworkTensor, NetworkTensor],
) -> tuple[NetworkTensor, ...]:
    """`emit_candidates` in TensorRT layers.

    Args:
        emit: takes the layers.
        rows: seed [B,1], candidates [B,S] and matched drafts [B,1], int32.
        block: [B,S], gives the extents.
        state: cache length [B], tokens that may still be emitted [B], ids that end a row [E], int64.
    """
    seed, candidates, matched = rows
    cache_length, remaining, end_token_ids = state
    places, zero, one = logic.offsets(emit, block), logic.integer(emit, 0), logic.integer(emit, 1)
    ends = emit.reshape(logic.small(emit, end_token_ids), (1, 1, -1))
    is_end = emit.elementwise("EQUAL", emit.reshape(candidates, (0, -1, 1)), ends)
    num_ends = emit.reshape(logic.count(emit, is_end), (0, -1))
    first_end = logic.first(emit, emit.elementwise("GREATER", num_ends, zero), block)
    left = emit.elementwise("MAX", logic.column(emit, remaining), zero)
    wanted = emit.elementwise("SUM", emit.elementwise("MIN", matched, first_end), one)
    count = emit.elementwise("MIN", wanted, left)
    is_emitted = emit.elementwise("LESS", places, count)
    emitted = logic.select(emit, is_emitted, candidates, logic.integer(emit, NO_TOKEN))
    newest = emit.elementwise("MAX", emit.elementwise("SUB", count, one), zero)
    # One entry a row is not zero: their sum picks it.
    is_newest = emit.elementwise("EQUAL", places, newest)
    last = emit.reduce_last("SUM", logic.select(emit, is_newest, candidates, zero))
    next_seed = logic.select(emit, emit.elementwise("GREATER", count, zero), last, seed)
    rest = logic.select(emit, emit.elementwise("LESS", first_end, count), zero, emit.elementwise("SUB", left, count))
    accepted = emit.elementwise("MIN", count, matched)
    length = emit.elementwise("SUM", cache_length, logic.long_vector(emit, count))
    numbers = tuple(logic.long_vector(emit, x) for x in (accepted, count, next_seed, rest))
    return numbers[0], emit.cast(emitted, emit.api.int64), numbers[1], numbers[2], length, numbers[3]


def at_offsets(emit: NetworkEmitter, rows: NetworkTensor, places: NetworkTensor) -> NetworkTensor:
    """Columns `places` [1,N] of `rows` [B,S]: [B,N]."""
    indices = emit.reshape(places, (-1,))
    return emit.output(emit.network.add_gather(rows, indices, 1))

"""Comparisons and counts over the tokens of a block, in TensorRT layers. Numbers are int32 in between, int64 at the borders."""

from __future__ import annotations

import numpy as np

from nemodiff_trt.plugins.network_emitter import NetworkEmitter, NetworkTensor


def integer(emit: NetworkEmitter, value: int, rank: int = 2) -> NetworkTensor:
    """int32 constant of one entry."""
    return emit.once(("integer", value, rank), lambda: emit.constant(np.full((1,) * rank, value, np.int32)))


def number(emit: NetworkEmitter, value: float, rank: int = 2) -> NetworkTensor:
    """fp32 constant of one entry."""
    return emit.once(("number", value, rank), lambda: emit.constant(np.full((1,) * rank, value, np.float32)))


def select(emit: NetworkEmitter, condition: NetworkTensor, yes: NetworkTensor, no: NetworkTensor) -> NetworkTensor:
    """`yes` where the condition holds, else `no`; all of one rank."""
    return emit.output(emit.network.add_select(condition, yes, no))


def small(emit: NetworkEmitter, x: NetworkTensor) -> NetworkTensor:
    """int64 ids, counts or lengths as int32."""
    return emit.cast(x, emit.api.int32)


def column(emit: NetworkEmitter, x: NetworkTensor) -> NetworkTensor:
    """[B] int64 as [B,1] int32."""
    return emit.reshape(small(emit, x), (-1, 1))


def long_vector(emit: NetworkEmitter, x: NetworkTensor) -> NetworkTensor:
    """[B,1] as [B] int64."""
    return emit.cast(emit.reshape(x, (-1,)), emit.api.int64)


def offsets(emit: NetworkEmitter, block: NetworkTensor) -> NetworkTensor:
    """int32 [1,S]: 0 .. S-1 for a `block` [B,S]."""

    def make() -> NetworkTensor:
        fill = emit.network.add_fill((0,), emit.api.FillOperation.LINSPACE, emit.api.int32)
        # Length, first value, step: a shape tensor, a scalar, one number per axis.
        fill.set_input(0, emit.extent(block, 1))
        fill.set_input(1, emit.constant(np.array(0, np.int32)))
        fill.set_input(2, emit.constant(np.array([1], np.int32)))
        return emit.reshape(emit.output(fill), (1, -1))

    return emit.once(("offsets", block.name), make)


def step_length(emit: NetworkEmitter, block: NetworkTensor) -> NetworkTensor:
    """int32 [1,1]: S of a `block` [B,S]."""
    return emit.once(("step_length", block.name), lambda: emit.reshape(small(emit, emit.extent(block, 1)), (1, 1)))


def count(emit: NetworkEmitter, flags: NetworkTensor) -> NetworkTensor:
    """int32: how many of the last axis are set; the axis stays with extent 1."""
    return emit.reduce_last("SUM", emit.cast(flags, emit.api.int32))


def first(emit: NetworkEmitter, flags: NetworkTensor, block: NetworkTensor) -> NetworkTensor:
    """int32 [B,1]: offset of the first set flag of [B,S], S where there is none."""
    return emit.reduce_last("MIN", select(emit, flags, offsets(emit, block), step_length(emit, block)))

"""`nemodiff::masked_attention` in Triton: launch, what is compiled ahead of time."""

from __future__ import annotations

import torch
from torch import Tensor

from nemodiff_trt.plugins.attention.triton_form import StepShape, launch_over_cache
from nemodiff_trt.plugins.attention.triton_form import refuses as refuses_attention
from nemodiff_trt.plugins.masked_attention.triton_kernel import masked_attention_rows
from nemodiff_trt.plugins.triton_build import KernelBuild, Traffic, TritonForm
from nemodiff_trt.plugins.triton_checks import refuse_layout


def refuses(
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    cache_length: Tensor,
    step_mask: Tensor,
    num_heads: int,
    scale: float | None = None,
) -> str | None:
    """Why the kernels do not take these arguments."""
    refusal = refuses_attention(query, key_cache, value_cache, cache_length, num_heads, False, scale)
    if refusal is not None:
        return refusal
    batch, step = query.shape[:2]
    if step_mask.dtype != torch.bool or step_mask.shape != (batch, step, step):
        return f"step_mask is {step_mask.dtype} of shape {tuple(step_mask.shape)}"
    return refuse_layout({"query": query, "step_mask": step_mask})


def launch(
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    cache_length: Tensor,
    step_mask: Tensor,
    num_heads: int,
    scale: float | None = None,
) -> Tensor:
    """[B,S,H*D] in the dtype of `query`; see `masked_attention_reference`. cache_length + S must not exceed the capacity."""
    inputs = (query, key_cache, value_cache, cache_length, step_mask)
    return launch_over_cache(masked_attention_rows, inputs, num_heads, scale)


_MASK = {"mask_ptr": "*i1"}


def _builds(shape: StepShape) -> list[KernelBuild]:
    return [shape.rows_build(masked_attention_rows, "", _MASK), *shape.joins()]


def _traffic(shape: StepShape, block_length: int, used: int) -> Traffic:
    """One layer of one sequence in bf16: a step of block_length groups of block_length masks behind as many heads."""
    rows = shape.step * shape.num_heads
    minimum = (used + shape.step) * shape.token_bytes + 2 * rows * shape.head_dim * 2 + shape.step**2
    # Of the step's own tokens a tile of rows reads the heads and about one group. Every key head reads the mask.
    tokens = used + 2 * block_length
    moved = shape.moved(tokens) + shape.num_kv_heads * shape.step**2
    groups = f"{block_length} groups of {block_length}"
    name = f"{groups} after {used}, heads {shape.num_heads}/{shape.num_kv_heads} of {shape.head_dim}"
    kernels = tuple(build.name for build in _builds(shape))
    return Traffic(name, kernels, moved, minimum, operations=4 * rows * tokens * shape.head_dim)


# Heads of the published sizes and of the packaged one; a step is a block of heads and a block behind each of them.
_BLOCKS = (8, 32)
_SHAPES = {(heads, block): StepShape(*heads, block * (block + 1)) for heads in ((32, 8, 128), (6, 2, 64)) for block in _BLOCKS}

masked_attention_triton = TritonForm(
    launch,
    refuses,
    builds=tuple({build.name: build for shape in _SHAPES.values() for build in _builds(shape)}.values()),
    traffic=tuple(_traffic(_SHAPES[(32, 8, 128), block], block, 4096) for block in _BLOCKS),
)

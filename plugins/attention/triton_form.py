"""`nemodiff::attention` in Triton: tiles, splits, launch, what is compiled ahead of time."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nemodiff_trt.plugins.attention.triton_kernel import attention_join, attention_rows
from nemodiff_trt.plugins.triton_build import KernelBuild, Traffic, TritonForm, addresses
from nemodiff_trt.plugins.triton_checks import FLOATS, next_power_of_2, refuse_layout

# Numbers of a tile of rows -> slots that are loaded at once. What a program holds of both has to fit into its registers.
_SLOTS = ((64 * 64, 64), (64 * 128, 32))
_FEWEST_SLOTS = 16
# Rows of a tile: the width of a matrix product for one token, and more where there are enough tiles either way, because each
# of them reads the cache once.
_TILES = ((16, 16), (1024, 64))
_LARGEST_TILE = 128
# As many programs as fill a GPU of about this many multiprocessors, but no more splits than one program can join.
_WANTED_PROGRAMS, _MAX_SPLITS = 128, 32
_LOG2_E = math.log2(math.e)


@dataclass(frozen=True, slots=True)
class Tiling:
    """How a step is divided: query rows of a program, tiles of a key head, shares of the used slots."""

    block_m: int
    num_tiles: int
    splits: int


def tiling(batch: int, step: int, num_heads: int, num_kv_heads: int) -> Tiling:
    """Depends on shapes alone: lengths stay on the device, so a captured graph serves all of them."""
    rows = step * (num_heads // num_kv_heads)
    block_m = next((size for most, size in _TILES if rows <= most), _LARGEST_TILE)
    num_tiles = -(-rows // block_m)
    programs = num_tiles * batch * num_kv_heads
    splits = next_power_of_2(max(1, _WANTED_PROGRAMS // programs))
    return Tiling(block_m, num_tiles, min(splits, _MAX_SPLITS))


def num_warps(block_m: int, head_dim: int) -> int:
    """Warps of a program: four would have to keep some of a large tile of wide heads outside their registers."""
    return 8 if block_m * head_dim >= 64 * 64 else 4


def block_n(block_m: int, head_dim: int) -> int:
    """Slots of one turn of the loop."""
    return next((slots for most, slots in _SLOTS if block_m * head_dim <= most), _FEWEST_SLOTS)


def refuses(
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    cache_length: Tensor,
    num_heads: int,
    causal: bool,
    scale: float | None = None,
) -> str | None:
    """Why the kernels do not take these arguments."""
    if query.dtype not in FLOATS or key_cache.dtype != query.dtype or value_cache.dtype != query.dtype:
        return f"queries are {query.dtype}, caches {key_cache.dtype} and {value_cache.dtype}"
    if cache_length.dtype != torch.int64:
        return f"cache_length is {cache_length.dtype}"
    head_dim = query.shape[-1] // num_heads
    if head_dim not in (16, 32, 64, 128):
        return f"heads of {head_dim}, 16, 32, 64 and 128 are taken"
    if query.numel() == 0 or num_heads % key_cache.shape[1]:
        return f"queries have the shape {tuple(query.shape)} for {num_heads} heads over {key_cache.shape[1]} key heads"
    named = {"query": query, "key_cache": key_cache, "value_cache": value_cache, "cache_length": cache_length}
    return refuse_layout(named)


def launch(
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    cache_length: Tensor,
    num_heads: int,
    causal: bool,
    scale: float | None = None,
) -> Tensor:
    """[B,S,H*D] in the dtype of `query`; see `attention_reference`. cache_length + S must not exceed the capacity."""
    return launch_over_cache(attention_rows, (query, key_cache, value_cache, cache_length), num_heads, scale, CAUSAL=causal)


def launch_over_cache(kernel: Any, inputs: tuple[Tensor, ...], num_heads: int, scale: float | None, **constants: Any) -> Tensor:
    """Run a kernel with the grid, the results and the parameters of `attention_rows`.

    Args:
        kernel: takes `inputs`, then what follows the inputs of `attention_rows`, then `constants` as well.
        inputs: query [B,S,H*D], caches [B,G,K,D], cache length [B], and what else the kernel reads.
        num_heads: H.
        scale: factor on the scores; None for 1/sqrt(D).
        **constants: of the kernel, beyond those of every kernel here.
    """
    query, key_cache = inputs[:2]
    batch, step, width = query.shape
    head_dim, num_kv_heads, capacity = width // num_heads, key_cache.shape[1], key_cache.shape[2]
    tiles = tiling(batch, step, num_heads, num_kv_heads)
    splits, rows = tiles.splits, batch * step * num_heads
    out = torch.empty_like(query)
    # With one split the kernel writes its result itself and touches neither.
    mixed = torch.empty((splits, rows, head_dim) if splits > 1 else (1,), dtype=torch.float32, device=query.device)
    stats = torch.empty((2, splits, rows) if splits > 1 else (1,), dtype=torch.float32, device=query.device)
    factor = _LOG2_E * (head_dim**-0.5 if scale is None else scale)
    kernel[(tiles.num_tiles, batch * num_kv_heads, splits)](
        *inputs, out, mixed, stats, step, capacity, factor,
        KV_HEADS=num_kv_heads, GROUP=num_heads // num_kv_heads, D=head_dim, SPLITS=splits,
        BLOCK_M=tiles.block_m, BLOCK_N=block_n(tiles.block_m, head_dim), num_warps=num_warps(tiles.block_m, head_dim),
        **constants,
    )  # fmt: skip
    if splits > 1:
        attention_join[(rows,)](mixed, stats, out, rows, D=head_dim, SPLITS=splits, num_warps=1)
    return out


@dataclass(frozen=True, slots=True)
class StepShape:
    """Heads of a model, and a step of it."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    step: int

    @property
    def tiling(self) -> Tiling:
        return tiling(1, self.step, self.num_heads, self.num_kv_heads)

    def rows_build(self, kernel: Any, suffix: str, more_inputs: Mapping[str, str], **constants: int) -> KernelBuild:
        """Of `kernel`, see `launch_over_cache`: `more_inputs` are the Triton types of inputs beyond those of attention."""
        tiles = self.tiling
        name = (
            f"{kernel.__name__}-{self.num_heads}x{self.num_kv_heads}x{self.head_dim}-m{tiles.block_m}-s{tiles.splits}{suffix}"
        )
        inputs = dict.fromkeys(("query_ptr", "key_ptr", "value_ptr", "out_ptr"), "*bf16") | {"length_ptr": "*i64"}
        numbers = {"mixed_ptr": "*fp32", "stats_ptr": "*fp32", "step": "i32", "capacity": "i32", "scale": "fp32"}
        types = inputs | numbers | dict(more_inputs)
        sizes = {
            "KV_HEADS": self.num_kv_heads, "GROUP": self.num_heads // self.num_kv_heads, "D": self.head_dim,
            "SPLITS": tiles.splits, "BLOCK_M": tiles.block_m, "BLOCK_N": block_n(tiles.block_m, self.head_dim),
        }  # fmt: skip
        aligned = addresses(types)
        warps = num_warps(tiles.block_m, self.head_dim)
        return KernelBuild(name, kernel, types, sizes | constants, aligned, warps)

    def join_build(self) -> KernelBuild:
        types = {"mixed_ptr": "*fp32", "stats_ptr": "*fp32", "out_ptr": "*bf16", "num_rows": "i32"}
        constants = {"D": self.head_dim, "SPLITS": self.tiling.splits}
        aligned = addresses(types)
        name = f"attention_join-{self.head_dim}-s{self.tiling.splits}"
        return KernelBuild(name, attention_join, types, constants, aligned, num_warps=1)

    def joins(self) -> list[KernelBuild]:
        return [self.join_build()] if self.tiling.splits > 1 else []

    def builds(self) -> list[KernelBuild]:
        directions = (True,) if self.step == 1 else (True, False)
        rows = [self.rows_build(attention_rows, "-causal" if causal else "-block", {}, CAUSAL=causal) for causal in directions]
        return rows + self.joins()

    def moved(self, tokens: int) -> int:
        """Bytes of one layer and one sequence in bf16 when every tile of rows reads keys and values of so many tokens.

        What several tiles read again counts in full, though much of it stays in the GPU's cache.
        """
        tiles, rows = self.tiling, self.step * self.num_heads
        query_bytes = rows * self.head_dim * 2
        # Sums of the splits are written and read once.
        parts = 2 * tiles.splits * rows * (self.head_dim + 2) * 4 if tiles.splits > 1 else 0
        return tiles.num_tiles * tokens * self.token_bytes + (tiles.splits + 1) * query_bytes + parts

    @property
    def token_bytes(self) -> int:
        """Key and value of one token in bf16."""
        return 2 * self.num_kv_heads * self.head_dim * 2

    def traffic(self, used: int) -> Traffic:
        """One layer, one sequence, `used` slots with the step's own, bf16."""
        rows = self.step * self.num_heads
        minimum = used * self.token_bytes + 2 * rows * self.head_dim * 2
        kernels = tuple(build.name for build in self.builds() if build.name.split("-")[-1] != "causal" or self.step == 1)
        shape = f"{self.step} tokens after {used - self.step}, heads {self.num_heads}/{self.num_kv_heads} of {self.head_dim}"
        return Traffic(shape, kernels, self.moved(used), minimum, operations=4 * rows * used * self.head_dim)


# The published sizes have 32 query heads over 8 key heads of 128; the packaged model has 6 over 2 of 64.
_SHAPES = tuple(StepShape(*heads, step) for heads in ((32, 8, 128), (6, 2, 64)) for step in (1, 32))

attention_triton = TritonForm(
    launch,
    refuses,
    builds=tuple({build.name: build for shape in _SHAPES for build in shape.builds()}.values()),
    traffic=tuple(shape.traffic(4096) for shape in _SHAPES),
)

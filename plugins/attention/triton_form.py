"""`nemodiff::attention` in Triton: tiles, splits, launch, what is compiled ahead of time."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from nemodiff_trt.plugins.attention.triton_kernel import attention_join, attention_rows
from nemodiff_trt.plugins.triton_build import KernelBuild, Traffic, TritonForm
from nemodiff_trt.plugins.triton_checks import FLOATS, next_power_of_2, refuse_layout

# Slots that are loaded at once; fewer where a program holds a large tile of wide heads.
_BLOCK_N, _SMALL_BLOCK_N = 64, 32
_ROWS_OF_A_TILE = 64
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
    block_m = 16 if rows <= 16 else _ROWS_OF_A_TILE
    num_tiles = -(-rows // block_m)
    programs = num_tiles * batch * num_kv_heads
    splits = next_power_of_2(max(1, _WANTED_PROGRAMS // programs))
    return Tiling(block_m, num_tiles, min(splits, _MAX_SPLITS))


def _is_large(block_m: int, head_dim: int) -> bool:
    return block_m * head_dim > 64 * 64


def num_warps(block_m: int, head_dim: int) -> int:
    """Warps of a program: four would have to keep some of a large tile of wide heads outside their registers."""
    return 8 if _is_large(block_m, head_dim) else 4


def block_n(block_m: int, head_dim: int) -> int:
    """Slots of one turn of the loop."""
    return _SMALL_BLOCK_N if _is_large(block_m, head_dim) else _BLOCK_N


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
    batch, step, width = query.shape
    head_dim, num_kv_heads, capacity = width // num_heads, key_cache.shape[1], key_cache.shape[2]
    tiles = tiling(batch, step, num_heads, num_kv_heads)
    splits, rows = tiles.splits, batch * step * num_heads
    out = torch.empty_like(query)
    # With one split the kernel writes its result itself and touches neither.
    mixed = torch.empty((splits, rows, head_dim) if splits > 1 else (1,), dtype=torch.float32, device=query.device)
    stats = torch.empty((2, splits, rows) if splits > 1 else (1,), dtype=torch.float32, device=query.device)
    factor = _LOG2_E * (head_dim**-0.5 if scale is None else scale)
    attention_rows[(tiles.num_tiles, batch * num_kv_heads, splits)](
        query, key_cache, value_cache, cache_length, out, mixed, stats, step, capacity, factor,
        KV_HEADS=num_kv_heads, GROUP=num_heads // num_kv_heads, D=head_dim, CAUSAL=causal, SPLITS=splits,
        BLOCK_M=tiles.block_m, BLOCK_N=block_n(tiles.block_m, head_dim), num_warps=num_warps(tiles.block_m, head_dim),
    )  # fmt: skip
    if splits > 1:
        attention_join[(rows,)](mixed, stats, out, rows, D=head_dim, SPLITS=splits, num_warps=1)
    return out


@dataclass(frozen=True, slots=True)
class _Shape:
    """Heads of a model, and a step of it."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    step: int

    @property
    def tiling(self) -> Tiling:
        return tiling(1, self.step, self.num_heads, self.num_kv_heads)

    def rows_build(self, causal: bool) -> KernelBuild:
        tiles = self.tiling
        name = f"attention_rows-{self.num_heads}x{self.num_kv_heads}x{self.head_dim}-m{tiles.block_m}-s{tiles.splits}"
        pointers = dict.fromkeys(("query_ptr", "key_ptr", "value_ptr"), "*bf16") | {"length_ptr": "*i64", "out_ptr": "*bf16"}
        types = pointers | {"mixed_ptr": "*fp32", "stats_ptr": "*fp32", "step": "i32", "capacity": "i32", "scale": "fp32"}
        constants = {
            "KV_HEADS": self.num_kv_heads, "GROUP": self.num_heads // self.num_kv_heads, "D": self.head_dim,
            "CAUSAL": causal, "SPLITS": tiles.splits, "BLOCK_M": tiles.block_m,
            "BLOCK_N": block_n(tiles.block_m, self.head_dim),
        }  # fmt: skip
        aligned = frozenset(name for name in types if name.endswith("_ptr"))
        warps = num_warps(tiles.block_m, self.head_dim)
        return KernelBuild(f"{name}-{'causal' if causal else 'block'}", attention_rows, types, constants, aligned, warps)

    def join_build(self) -> KernelBuild:
        types = {"mixed_ptr": "*fp32", "stats_ptr": "*fp32", "out_ptr": "*bf16", "num_rows": "i32"}
        constants = {"D": self.head_dim, "SPLITS": self.tiling.splits}
        aligned = frozenset(name for name in types if name.endswith("_ptr"))
        name = f"attention_join-{self.head_dim}-s{self.tiling.splits}"
        return KernelBuild(name, attention_join, types, constants, aligned, num_warps=1)

    def builds(self) -> list[KernelBuild]:
        directions = (True,) if self.step == 1 else (True, False)
        joins = [self.join_build()] if self.tiling.splits > 1 else []
        return [self.rows_build(causal) for causal in directions] + joins

    def traffic(self, used: int) -> Traffic:
        """One layer, one sequence, `used` slots with the step's own, bf16."""
        tiles, rows = self.tiling, self.step * self.num_heads
        key_bytes = 2 * used * self.num_kv_heads * self.head_dim * 2
        query_bytes = rows * self.head_dim * 2
        minimum = key_bytes + 2 * query_bytes
        # Every tile of rows reads keys and values of its head, every split the queries; sums are written and read once.
        parts = 2 * tiles.splits * rows * (self.head_dim + 2) * 4 if tiles.splits > 1 else 0
        moved = tiles.num_tiles * key_bytes + tiles.splits * query_bytes + query_bytes + parts
        kernels = tuple(build.name for build in self.builds() if build.name.split("-")[-1] != "causal" or self.step == 1)
        shape = f"{self.step} tokens after {used - self.step}, heads {self.num_heads}/{self.num_kv_heads} of {self.head_dim}"
        return Traffic(shape, kernels, moved, minimum, operations=4 * rows * used * self.head_dim)


# The published sizes have 32 query heads over 8 key heads of 128; the packaged model has 6 over 2 of 64.
_SHAPES = tuple(_Shape(*heads, step) for heads in ((32, 8, 128), (6, 2, 64)) for step in (1, 32))

attention_triton = TritonForm(
    launch,
    refuses,
    builds=tuple({build.name: build for shape in _SHAPES for build in shape.builds()}.values()),
    traffic=tuple(shape.traffic(4096) for shape in _SHAPES),
)

"""Kernels with a defect on purpose: what the resource report has to find."""

import triton
import triton.language as tl

from nemodiff_trt.plugins.triton_build import KernelBuild


@triton.jit
def spilling(x_ptr, out_ptr, N: tl.constexpr):
    """Holds N x N numbers: for N = 128 and two warps more than they have registers for."""
    rows, columns = tl.arange(0, N), tl.arange(0, N)
    x = tl.load(x_ptr + rows[:, None] * N + columns[None, :])
    # Both reductions need all numbers, and the last line needs them once more.
    y = x - tl.max(x, axis=1)[:, None] * tl.min(x, axis=0)[None, :]
    z = y - tl.sum(y * y, axis=1)[:, None]
    tl.store(out_ptr + rows[:, None] * N + columns[None, :], x + y * z)


@triton.jit
def strided(x_ptr, out_ptr, stride, N: tl.constexpr):
    """Reads numbers that do not lie side by side."""
    offsets = tl.arange(0, N)
    tl.store(out_ptr + offsets, tl.load(x_ptr + offsets * stride))


_TYPES = {"x_ptr": "*fp32", "out_ptr": "*fp32"}
_ALIGNED = frozenset(_TYPES)
SPILLING = KernelBuild("spilling", spilling, _TYPES, {"N": 128}, _ALIGNED, num_warps=2)
FITTING = KernelBuild("fitting", spilling, _TYPES, {"N": 32}, _ALIGNED, num_warps=1)
STRIDED = KernelBuild("strided", strided, {**_TYPES, "stride": "i32"}, {"N": 1024}, _ALIGNED, streams=True)

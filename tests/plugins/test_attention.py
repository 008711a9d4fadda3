"""Attention kernels against a plain softmax in float64: lengths 0, 1 and full, ragged batches, rubbish in unused slots."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from support.interpreter import Interpreter

# Query heads, key heads, width of a head.
SMALL, PUBLISHED, PACKAGED = (4, 2, 16), (32, 8, 128), (6, 2, 64)


def exact(query: Tensor, keys: Tensor, values: Tensor, lengths: list[int], heads: tuple[int, int, int], causal: bool) -> Tensor:
    """The definition in float64, row by row over the slots that its tokens see."""
    num_heads, num_kv_heads, head_dim = heads
    batch, step, width = query.shape
    group = num_heads // num_kv_heads
    out = torch.zeros(batch, step, num_kv_heads, group, head_dim, dtype=torch.float64)
    rows = query.double().view(batch, step, num_kv_heads, group, head_dim)
    for b, length in enumerate(lengths):
        for s in range(step):
            seen = length + (s if causal else step - 1) + 1
            scores = torch.einsum("ghd,gkd->ghk", rows[b, s], keys[b, :, :seen].double()) / head_dim**0.5
            out[b, s] = torch.einsum("ghk,gkd->ghd", scores.softmax(-1), values[b, :, :seen].double())
    return out.view(batch, step, width)


def check(
    interpreter: Interpreter,
    random: torch.Generator,
    shape: tuple[tuple[int, int, int], int, int],
    lengths: list[int],
    causal: bool,
    dtype: torch.dtype = torch.float32,
) -> None:
    """`shape` is heads, step and capacity. Slots that no token may see hold NaN."""
    heads, step, capacity = shape
    num_heads, num_kv_heads, head_dim = heads
    query = torch.randn(len(lengths), step, num_heads * head_dim, generator=random).to(dtype)
    keys, values = (torch.randn(len(lengths), num_kv_heads, capacity, head_dim, generator=random).to(dtype) for _ in range(2))
    for row, length in enumerate(lengths):
        keys[row, :, length + step :], values[row, :, length + step :] = torch.nan, torch.nan
    found = interpreter.launch("attention", query, keys, values, torch.tensor(lengths), num_heads, causal)
    assert found.dtype == dtype
    # Half-precision weights are rounded once before the second product, the result once more: three halves of a unit each way.
    bounds = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
    torch.testing.assert_close(found.double(), exact(query, keys, values, lengths, heads, causal), rtol=0, atol=bounds[dtype])


@pytest.mark.parametrize(
    ("step", "lengths", "causal"),
    # Nothing before the step, one token, the border of a block, a cache filled to its last slot. A step of one token is the
    # same in both directions.
    [
        (1, [0, 169], True), (7, [1, 163], True), (33, [63], True), (33, [137], False),
    ],
)  # fmt: skip
def test_ragged_lengths(interpreter: Interpreter, random: torch.Generator, step: int, lengths: list[int], causal: bool) -> None:
    check(interpreter, random, (SMALL, step, 170), lengths, causal)


@pytest.mark.parametrize(("dtype", "causal"), [(torch.float16, True), (torch.bfloat16, False)])
def test_half_precision(interpreter: Interpreter, random: torch.Generator, dtype: torch.dtype, causal: bool) -> None:
    check(interpreter, random, (PACKAGED, 5, 90), [85, 40], causal, dtype)


@pytest.mark.parametrize(("heads", "step"), [(PACKAGED, 1), (PACKAGED, 8), (PUBLISHED, 1)])
def test_shipped_heads(interpreter: Interpreter, random: torch.Generator, heads: tuple[int, int, int], step: int) -> None:
    check(interpreter, random, (heads, step, 80), [80 - step], causal=step != 8)


@pytest.mark.slow
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("heads", [PACKAGED, PUBLISHED])
def test_whole_blocks_after_long_prompts(
    interpreter: Interpreter, random: torch.Generator, heads: tuple[int, int, int], causal: bool
) -> None:
    check(interpreter, random, (heads, 32, 700), [0, 668, 130], causal)


def test_the_scale_is_the_caller_s(interpreter: Interpreter, random: torch.Generator) -> None:
    query = torch.randn(1, 3, 4 * 16, generator=random)
    keys, values = (torch.randn(1, 2, 20, 16, generator=random) for _ in range(2))
    length = torch.tensor([9])
    scaled = interpreter.launch("attention", query * 0.25, keys, values, length, 4, True, 1.0)
    torch.testing.assert_close(
        scaled, interpreter.launch("attention", query, keys, values, length, 4, True), rtol=1e-5, atol=1e-6
    )


def test_large_scores_do_not_overflow(interpreter: Interpreter, random: torch.Generator) -> None:
    query = torch.randn(1, 3, 4 * 16, generator=random) * 300
    keys, values = (torch.randn(1, 2, 80, 16, generator=random) for _ in range(2))
    found = interpreter.launch("attention", query, keys, values, torch.tensor([70]), 4, True)
    # Scores of some thousands: a unit of their last place moves a weight by 2e-4.
    torch.testing.assert_close(found.double(), exact(query, keys, values, [70], SMALL, True), rtol=0, atol=2e-3)


@pytest.mark.parametrize(
    ("change", "reason"),
    [("heads", "heads of 24"), ("dtype", "caches torch.float16"), ("length", "int32"), ("layout", "not contiguous")],
)
def test_refusals(interpreter: Interpreter, change: str, reason: str) -> None:
    width = 24 if change == "heads" else 16
    query, keys, length = torch.zeros(1, 2, 4 * width), torch.zeros(1, 2, 8, width), torch.tensor([0])
    if change == "dtype":
        keys = keys.half()
    if change == "length":
        length = length.int()
    if change == "layout":
        keys = torch.zeros(1, 8, 2, width).transpose(1, 2)
    with pytest.raises(ValueError, match=reason):
        interpreter.launch("attention", query, keys, keys, length, 4, True)

"""Kernel of attention under a step mask, against a plain softmax in float64: groups, trees, ragged batches, rubbish around."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from nemodiff_trt.plugins.masked_attention.triton_form import masked_attention_triton
from support.interpreter import Interpreter

SMALL, PUBLISHED, PACKAGED = (4, 2, 16), (32, 8, 128), (6, 2, 64)
OP = "masked_attention"


def exact(query: Tensor, keys: Tensor, values: Tensor, lengths: list[int], mask: Tensor, heads: tuple[int, int, int]) -> Tensor:
    """The definition in float64, row by row over the slots that its tokens see."""
    num_heads, num_kv_heads, head_dim = heads
    batch, step, width = query.shape
    group = num_heads // num_kv_heads
    out = torch.zeros(batch, step, num_kv_heads, group, head_dim, dtype=torch.float64)
    rows = query.double().view(batch, step, num_kv_heads, group, head_dim)
    for b, length in enumerate(lengths):
        for s in range(step):
            seen = torch.cat((torch.arange(length), length + mask[b, s].nonzero()[:, 0]))
            scores = torch.einsum("ghd,gkd->ghk", rows[b, s], keys[b][:, seen].double()) / head_dim**0.5
            out[b, s] = torch.einsum("ghk,gkd->ghd", scores.softmax(-1), values[b][:, seen].double())
    return out.view(batch, step, width)


def groups(num_groups: int, block_length: int) -> Tensor:
    """Mask of a step of heads and, behind them, one group of masks for each: bool [S,S], S = num_groups (block_length + 1)."""
    step = num_groups * (block_length + 1)
    group = torch.cat((torch.arange(num_groups), torch.arange(num_groups).repeat_interleave(block_length)))
    is_head = torch.arange(step) < num_groups
    sees_heads = is_head[None, :] & (group[None, :] <= group[:, None])
    return sees_heads | (~is_head[None, :] & ~is_head[:, None] & (group[None, :] == group[:, None]))


def tree(step: int, random: torch.Generator) -> Tensor:
    """Every token sees itself and its ancestors."""
    mask = torch.eye(step, dtype=torch.bool)
    for s in range(1, step):
        mask[s] |= mask[int(torch.randint(0, s, (), generator=random))]
    return mask


def check(
    interpreter: Interpreter,
    random: torch.Generator,
    heads: tuple[int, int, int],
    lengths: list[int],
    mask: Tensor,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Slots behind the step hold NaN. `mask` is [B,S,S]."""
    num_heads, num_kv_heads, head_dim = heads
    step, capacity = mask.shape[1], max(lengths) + mask.shape[1] + 7
    query = torch.randn(len(lengths), step, num_heads * head_dim, generator=random).to(dtype)
    keys, values = (torch.randn(len(lengths), num_kv_heads, capacity, head_dim, generator=random).to(dtype) for _ in range(2))
    for row, length in enumerate(lengths):
        keys[row, :, length + step :], values[row, :, length + step :] = torch.nan, torch.nan
    found = interpreter.launch(OP, query, keys, values, torch.tensor(lengths), mask, num_heads)
    assert found.dtype == dtype
    # As in the tests of attention.
    bounds = {torch.float32: 2e-6, torch.bfloat16: 1.6e-2}
    torch.testing.assert_close(found.double(), exact(query, keys, values, lengths, mask, heads), rtol=0, atol=bounds[dtype])


@pytest.mark.parametrize(
    ("heads", "lengths", "num_groups", "block_length"),
    [(SMALL, [90], 5, 4), (SMALL, [1], 6, 11), (PACKAGED, [64], 3, 4), (PUBLISHED, [40], 2, 1)],
)
def test_groups_that_share_a_cache(
    interpreter: Interpreter,
    random: torch.Generator,
    heads: tuple[int, int, int],
    lengths: list[int],
    num_groups: int,
    block_length: int,
) -> None:
    mask = groups(num_groups, block_length)
    assert mask.sum(1).tolist() == [*range(1, num_groups + 1)] + [
        j + 1 + block_length for j in range(num_groups) for _ in range(block_length)
    ]
    check(interpreter, random, heads, lengths, mask.expand(len(lengths), -1, -1).contiguous())


def test_each_sequence_has_its_own_mask(interpreter: Interpreter, random: torch.Generator) -> None:
    check(interpreter, random, SMALL, [0, 33], torch.stack([tree(21, random) for _ in range(2)]))


def test_half_precision(interpreter: Interpreter, random: torch.Generator) -> None:
    check(interpreter, random, SMALL, [33], tree(9, random)[None], torch.bfloat16)


def test_rows_that_see_nothing_of_the_step(interpreter: Interpreter, random: torch.Generator) -> None:
    mask = torch.rand(1, 20, 20, generator=random) < 0.2
    mask[:, :7] = False
    check(interpreter, random, SMALL, [5], mask)


@pytest.mark.slow
def test_a_large_step(interpreter: Interpreter, random: torch.Generator) -> None:
    # So many rows that tiles of 128 are taken.
    mask = groups(8, 8)
    assert mask.shape[0] * 16 > 1024
    check(interpreter, random, (16, 1, 16), [30], mask[None])


@pytest.mark.slow
@pytest.mark.parametrize("heads", [PACKAGED, PUBLISHED])
def test_whole_steps_after_long_prompts(interpreter: Interpreter, random: torch.Generator, heads: tuple[int, int, int]) -> None:
    mask = groups(8, 8)
    check(interpreter, random, heads, [0, 333], mask.expand(2, -1, -1).contiguous())


def test_equals_attention_under_its_masks(interpreter: Interpreter, random: torch.Generator) -> None:
    query = torch.randn(1, 9, 2 * 16, generator=random)
    keys, values = (torch.randn(1, 1, 60, 16, generator=random) for _ in range(2))
    lengths = torch.tensor([51])
    for causal, mask in ((True, torch.ones(9, 9).tril() > 0), (False, torch.ones(9, 9) > 0)):
        found = interpreter.launch(OP, query, keys, values, lengths, mask[None], 2)
        wanted = interpreter.launch("attention", query, keys, values, lengths, 2, causal)
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("mask", "reason"),
    [
        (torch.ones(1, 2, 2), "float32"),
        (torch.ones(1, 2, 3, dtype=torch.bool), "shape"),
        (torch.ones(1, 2, 2, 2, dtype=torch.bool)[..., 0], "not contiguous"),
    ],
)
def test_refusals(mask: Tensor, reason: str) -> None:
    query, keys = torch.zeros(1, 2, 4 * 16), torch.zeros(1, 2, 8, 16)
    assert reason in str(masked_attention_triton.refuses(query, keys, keys, torch.tensor([0]), mask, 4))

"""masked_attention: against softmax attention written as loops over heads and tokens."""

from __future__ import annotations

import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nemodiff_trt.plugins.masked_attention import masked_attention_reference

CAPACITY, HEADS, GROUPS, WIDTH = 14, 4, 2, 6


@settings(deadline=None, max_examples=40)
@given(
    lengths=st.lists(st.integers(0, 8), min_size=1, max_size=3),
    step=st.integers(1, 6),
    seed=st.integers(0, 2**16),
    scale=st.none() | st.just(0.3),
)
def test_equals_a_loop(lengths: list[int], step: int, seed: int, scale: float | None) -> None:
    generator = torch.Generator().manual_seed(seed)
    batch = len(lengths)
    query = torch.randn(batch, step, HEADS * WIDTH, generator=generator, dtype=torch.float64)
    keys, values = torch.randn(2, batch, GROUPS, CAPACITY, WIDTH, generator=generator, dtype=torch.float64)
    mask = (torch.rand(batch, step, step, generator=generator) < 0.4) | torch.eye(step, dtype=torch.bool)
    found = masked_attention_reference(query, keys, values, torch.tensor(lengths), mask, HEADS, scale)
    factor = 1 / math.sqrt(WIDTH) if scale is None else scale
    for row, length in enumerate(lengths):
        for s in range(step):
            slots = [*range(length), *(length + t for t in range(step) if mask[row, s, t])]
            for head in range(HEADS):
                part = slice(head * WIDTH, (head + 1) * WIDTH)
                group = head // (HEADS // GROUPS)
                weights = torch.softmax(factor * keys[row, group, slots] @ query[row, s, part], 0)
                torch.testing.assert_close(found[row, s, part], weights @ values[row, group, slots], rtol=1e-12, atol=1e-12)

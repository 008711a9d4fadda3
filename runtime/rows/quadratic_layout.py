"""Layouts of quadratic self-speculation: which tokens a step has, where they stand and what they see.

A step of h heads and the groups j_1 .. j_g, each of B masks, has its tokens in the order

    d_0 .. d_{h-1} | B masks of group j_1 | B masks of group j_2 | ...

d_0 is the seed, the other heads are drafts of the positions behind it. Heads see each other causally, so their answers verify
the drafts. The masks of group j guess the B tokens behind d_j: they see d_0 .. d_j and each other. The heads come first, so the
keys and values of accepted drafts lie where the cache continues, and none has to be moved.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from nemodiff_trt.runtime.step_layout import StepLayout


def quadratic_layout(num_heads: int, groups: Sequence[int], block_length: int) -> StepLayout:
    """Layout of one row with S = num_heads + len(groups) * block_length tokens.

    Args:
        num_heads: seed and drafts, h.
        groups: number j of the head that each group of masks follows, below `num_heads`.
        block_length: masks of a group, B.
    """
    step = num_heads + len(groups) * block_length
    layout = StepLayout.zeros(step)
    layout.position_offset[:num_heads] = np.arange(num_heads)
    layout.step_mask[:num_heads, :num_heads] = np.tri(num_heads, dtype=np.bool_)
    layout.adapter_rows[num_heads:] = 1
    for place, head in enumerate(groups):
        masks = group_rows(num_heads, place, block_length)
        layout.position_offset[masks] = head + 1 + np.arange(block_length)
        layout.step_mask[masks, : head + 1] = True
        layout.step_mask[masks, masks] = True
    return layout


def group_rows(num_heads: int, place: int, block_length: int) -> slice:
    """Step tokens of the group at `place` in the order of groups."""
    begin = num_heads + place * block_length
    return slice(begin, begin + block_length)


def tree_layout(block_length: int, leaf_offsets: Sequence[int]) -> StepLayout:
    """A block, causal, and one leaf for each of `leaf_offsets` (1 to block_length - 1): another token for that position of the
    block, which sees the block up to the position before it, and itself. The base weights run on all of them.
    """
    layout = StepLayout.zeros(block_length + len(leaf_offsets))
    layout.position_offset[:] = [*range(block_length), *leaf_offsets]
    layout.step_mask[:block_length, :block_length] = np.tri(block_length, dtype=np.bool_)
    for place, offset in enumerate(leaf_offsets, start=block_length):
        layout.step_mask[place, :offset] = True
        layout.step_mask[place, place] = True
    return layout

"""`nemodiff::next_block`: the block a cycle starts with, a known token and masks behind it."""

from __future__ import annotations

import torch
from torch import Tensor


def next_block_reference(seed: Tensor, block_length: int, mask_token_id: int) -> Tensor:
    """Blocks int64 [B,S] with S = `block_length` >= 1: `seed` [B] at offset 0, the mask id everywhere else."""
    block = seed.new_full((seed.shape[0], block_length), mask_token_id)
    block[:, 0] = seed
    return block


next_block = torch.library.custom_op("nemodiff::next_block", next_block_reference, mutates_args=())


@next_block.register_fake
def _(seed: Tensor, block_length: int, mask_token_id: int) -> Tensor:
    return seed.new_empty((seed.shape[0], block_length))

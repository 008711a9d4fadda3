"""`nemodiff::step_positions`: absolute position of every token of a step, `cache_length[b] + s`."""

from __future__ import annotations

import torch
from torch import Tensor


def step_positions_reference(input_ids: Tensor, cache_length: Tensor) -> Tensor:
    """Positions int64 [B,S] for `input_ids` [B,S] appended after `cache_length` [B] cached tokens."""
    return cache_length[:, None] + torch.arange(input_ids.shape[1], device=input_ids.device)[None, :]


step_positions = torch.library.custom_op("nemodiff::step_positions", step_positions_reference, mutates_args=())


@step_positions.register_fake
def _(input_ids: Tensor, cache_length: Tensor) -> Tensor:
    return torch.empty_like(input_ids)

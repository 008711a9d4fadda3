"""`nemodiff::cache_update`: write the keys or values of a step into a linear cache at each sequence's own length.

Equals ONNX `TensorScatter` (opset 24) with `axis=2, mode="linear"`. Functional here; engines bind input and output to one
buffer.
"""

from __future__ import annotations

import torch
from torch import Tensor


def cache_update_reference(cache: Tensor, new: Tensor, cache_length: Tensor) -> Tensor:
    """Copy of `cache` [B,G,K,D] with `new` [B,S,G*D] at slots `cache_length[b] .. cache_length[b] + S - 1`."""
    batch, num_kv_heads, _, head_dim = cache.shape
    step = new.shape[1]
    rows = torch.arange(batch, device=cache.device)[:, None]
    slots = cache_length[:, None] + torch.arange(step, device=cache.device)[None, :]
    updated = cache.clone()
    # Advanced indices around a slice put their axes first: the written block is [B,S,G,D].
    updated[rows, :, slots] = new.view(batch, step, num_kv_heads, head_dim)
    return updated


@torch.library.custom_op("nemodiff::cache_update", mutates_args=())
def cache_update(cache: Tensor, new: Tensor, cache_length: Tensor) -> Tensor:
    return cache_update_reference(cache, new, cache_length)


@cache_update.register_fake
def _(cache: Tensor, new: Tensor, cache_length: Tensor) -> Tensor:
    return torch.empty_like(cache)

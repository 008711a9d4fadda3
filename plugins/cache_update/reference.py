"""`nemodiff::cache_update`: write the keys or values of a step into a linear cache at each sequence's own length.

Equals ONNX `TensorScatter` (opset 24) with `axis=2, mode="linear"`. Functional here; engines bind input and output to one
buffer.
"""

from __future__ import annotations

import torch
from torch import Tensor


def cache_update_reference(cache: Tensor, new: Tensor, cache_length: Tensor) -> Tensor:
    """Copy of `cache` [B,G,K,D] with `new` [B,S,G*D] at slots `cache_length[b] .. cache_length[b] + S - 1`."""
    return write_cache(cache.clone(), new, cache_length)


def write_cache(cache: Tensor, new: Tensor, cache_length: Tensor) -> Tensor:
    """Write `new` into `cache` itself and return it: `cache_update_reference` for targets that compile the write in place."""
    batch, num_kv_heads, _, head_dim = cache.shape
    step = new.shape[1]
    rows = torch.arange(batch, device=cache.device)[:, None]
    slots = cache_length[:, None] + torch.arange(step, device=cache.device)[None, :]
    # Advanced indices around a slice put their axes first: the written block is [B,S,G,D].
    cache[rows, :, slots] = new.view(batch, step, num_kv_heads, head_dim)
    return cache


cache_update = torch.library.custom_op("nemodiff::cache_update", cache_update_reference, mutates_args=())


@cache_update.register_fake
def _(cache: Tensor, new: Tensor, cache_length: Tensor) -> Tensor:
    return torch.empty_like(cache)

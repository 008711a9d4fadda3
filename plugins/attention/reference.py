"""`nemodiff::attention`: grouped-query attention of a step over a linear cache that already holds the step's keys and values.

Equals ONNX `Attention` (opset 24) with `nonpad_kv_seqlen = cache_length + S`: every sequence attends to its own first
`cache_length + S` slots, causally aligned lower-right or without a mask. Scores are scaled by 1/sqrt(D) unless told otherwise.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional


class AttentionAttributes(NamedTuple):
    """The operator's arguments behind its tensors, see `attention_reference`."""

    num_heads: int
    causal: bool
    scale: float | None = None


def attention_reference(
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    cache_length: Tensor,
    num_heads: int,
    causal: bool,
    scale: float | None = None,
) -> Tensor:
    """Attend `query` [B,S,H*D] to the caches [B,G,K,D].

    Args:
        query: rotated queries.
        key_cache: keys, the step's own included.
        value_cache: values, the step's own included.
        cache_length: int64 [B], tokens that were valid before the step.
        num_heads: H.
        causal: token s sees slots 0 .. cache_length + s; otherwise every token sees 0 .. cache_length + S - 1.
        scale: factor on the scores; None for 1/sqrt(D).

    Returns:
        [B,S,H*D] in the dtype of `query`.
    """
    visible = visible_slots(query, key_cache, cache_length, causal)
    return attend_visible(query, key_cache, value_cache, visible, num_heads, scale)


def visible_slots(query: Tensor, key_cache: Tensor, cache_length: Tensor, causal: bool) -> Tensor:
    """Slots that every token of a step sees: bool [B,1,S,U], where U <= K is the longest used length of the batch.

    The same for all layers of a step. Arguments as of `attention_reference`; of `query` and `key_cache` only the shapes count.
    """
    step = query.shape[1]
    used = longest_used(key_cache, cache_length, step)
    slots = torch.arange(used, device=query.device)
    reach = torch.arange(step, device=query.device) if causal else torch.full((step,), step - 1, device=query.device)
    # Broadcast over heads.
    return slots[None, None, None, :] <= cache_length[:, None, None, None] + reach[None, None, :, None]


def longest_used(key_cache: Tensor, cache_length: Tensor, step: int) -> int:
    """U: slots that the longest sequence of the batch has used after a step of S tokens."""
    # `item`, not `int`: a tracing compiler keeps it as a symbol, so what it makes reads no slot that nobody uses either.
    used = (cache_length.max() + step).item()
    # The documented way to tell a compiler the range of a number that it cannot see.
    torch._check(used >= 1)  # type: ignore[no-untyped-call] # noqa: SLF001
    torch._check(used <= key_cache.shape[2])  # type: ignore[no-untyped-call] # noqa: SLF001
    return used  # type: ignore[return-value]


def attend_visible(
    query: Tensor, key_cache: Tensor, value_cache: Tensor, visible: Tensor, num_heads: int, scale: float | None = None
) -> Tensor:
    """Attend `query` [B,S,H*D] to the first U slots of the caches [B,G,K,D], those that `visible` [B,1,S,U] shows."""
    batch, step, width = query.shape
    heads = query.view(batch, step, num_heads, width // num_heads).transpose(1, 2)
    used = visible.shape[-1]
    mixed = functional.scaled_dot_product_attention(
        heads, key_cache[:, :, :used], value_cache[:, :, :used], attn_mask=visible, scale=scale, enable_gqa=True
    )
    return mixed.transpose(1, 2).reshape(batch, step, width)


attention = torch.library.custom_op("nemodiff::attention", attention_reference, mutates_args=())


@attention.register_fake
def _(query: Tensor, *_others: object) -> Tensor:
    return torch.empty_like(query)

"""`nemodiff::masked_attention`: grouped-query attention whose step tokens see each other as a mask says.

The cache already holds the keys and values of the step. Every query sees all slots that were valid before the step; of the
step's own tokens, written behind them, it sees those its row of the mask names. Several token groups that must not see each
other, or the branches of a tree, so share one step. Scores are scaled by 1/sqrt(D) unless told otherwise.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from nemodiff_trt.plugins.attention import attend_visible, longest_used


class MaskedAttentionAttributes(NamedTuple):
    """The operator's arguments behind its tensors, see `masked_attention_reference`."""

    num_heads: int
    scale: float | None = None


def masked_attention_reference(
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    cache_length: Tensor,
    step_mask: Tensor,
    num_heads: int,
    scale: float | None = None,
) -> Tensor:
    """Attend `query` [B,S,H*D] to the caches [B,G,K,D].

    Args:
        query: rotated queries.
        key_cache: keys, the step's own at slots cache_length .. cache_length + S - 1.
        value_cache: values, likewise.
        cache_length: int64 [B], tokens that were valid before the step.
        step_mask: bool [B,S,S], true where query s sees step token t; a query that sees neither cache nor step is undefined.
        num_heads: H.
        scale: factor on the scores; None for 1/sqrt(D).

    Returns:
        [B,S,H*D] in the dtype of `query`.
    """
    visible = visible_step_slots(key_cache, cache_length, step_mask)
    return attend_visible(query, key_cache, value_cache, visible, num_heads, scale)


def visible_step_slots(key_cache: Tensor, cache_length: Tensor, step_mask: Tensor) -> Tensor:
    """Slots that every token of a step sees: bool [B,1,S,U], where U <= K is the longest used length of the batch.

    The same for all layers of a step. Arguments as of `masked_attention_reference`; of `key_cache` only the shape counts.
    """
    step = step_mask.shape[1]
    used = longest_used(key_cache, cache_length, step)
    # Index in the step of every slot; below zero in the part that was valid before.
    index = torch.arange(used, device=step_mask.device)[None, :] - cache_length[:, None]
    within = index.clamp(0, step - 1)[:, None, :].expand(-1, step, -1)
    is_cached, is_step = (index < 0)[:, None, :], (index < step)[:, None, :]
    return (is_cached | (is_step & step_mask.gather(2, within)))[:, None]


masked_attention = torch.library.custom_op("nemodiff::masked_attention", masked_attention_reference, mutates_args=())


@masked_attention.register_fake
def _(query: Tensor, *_others: object) -> Tensor:
    return torch.empty_like(query)

"""`nemodiff::decision_top_k`: the best tokens of every row of logits, their probabilities, and how undecided the row is.

What `nemodiff::decision_head` says and more: its token and confidence are the first entries here. The mask id is never among
the tokens and always in the softmax; ties go to the lowest id.
"""

from __future__ import annotations

import torch
from torch import Tensor

Ranked = tuple[Tensor, Tensor, Tensor]


def decision_top_k_reference(logits: Tensor, mask_token_id: int, k: int) -> Ranked:
    """The `k` best tokens of every row of `logits` [B,S,V], best first.

    Args:
        logits: of any float type.
        mask_token_id: 0 to V-1.
        k: 1 to V-1.

    Returns:
        Tokens int64 [B,S,k]; their probabilities fp32 [B,S,k], by softmax over the full vocabulary in fp32 (fp64 for fp64
        logits); the entropy of that softmax fp32 [B,S] in nats. Rows that are no distribution are as `decision_head_reference`
        says, and their entropy is NaN.
    """
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    candidates = torch.cat((wide[..., :mask_token_id], wide[..., mask_token_id + 1 :]), -1)
    # A stable sort, not `topk`: which of equal candidates that takes is not specified. A NaN is the largest for both.
    best, places = candidates.sort(dim=-1, descending=True, stable=True)
    best, places = best[..., :k], places[..., :k]
    probabilities = torch.exp(best - wide.logsumexp(-1, keepdim=True))
    shifted = wide - wide.amax(-1, keepdim=True)
    weights = shifted.exp()
    total = weights.sum(-1)
    # What has no weight adds nothing, though its logarithm is infinite.
    mixed = torch.where(shifted == -torch.inf, 0.0, weights * shifted).sum(-1)
    entropy = total.log() - mixed / total
    return places + (places >= mask_token_id), probabilities.to(torch.float32), entropy.to(torch.float32)


decision_top_k = torch.library.custom_op("nemodiff::decision_top_k", decision_top_k_reference, mutates_args=())


@decision_top_k.register_fake
def _(logits: Tensor, mask_token_id: int, k: int) -> tuple[Tensor, Tensor, Tensor]:
    rows = logits.shape[:-1]
    return (
        torch.empty((*rows, k), dtype=torch.int64, device=logits.device),
        torch.empty((*rows, k), dtype=torch.float32, device=logits.device),
        torch.empty(rows, dtype=torch.float32, device=logits.device),
    )

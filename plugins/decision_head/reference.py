"""`nemodiff::decision_head`: which token, and how sure, for every row of logits.

The mask id is left out of the argmax and kept in the softmax denominator; ties go to the lowest id.
"""

from __future__ import annotations

import torch
from torch import Tensor


def decision_head_reference(logits: Tensor, mask_token_id: int) -> tuple[Tensor, Tensor]:
    """Token int64 [B,S] and its probability fp32 [B,S] from `logits` [B,S,V].

    The probability is softmax over the full vocabulary, computed in fp32 (fp64 for fp64 logits) and returned in fp32.

    Rows that are no distribution still give a token below V: a NaN counts as the largest candidate, and where every candidate
    is -inf the token is 0. The confidence is then NaN, as it is when the winner is +inf; it is 0 when the mask alone is
    finite, or +inf. Forms other than the Triton one give the same confidence, but may name another token for a row with a NaN.
    """
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    candidates = wide.clone()
    candidates[..., mask_token_id] = -torch.inf
    token = candidates.argmax(-1)
    best = candidates.gather(-1, token[..., None])[..., 0]
    return token, torch.exp(best - wide.logsumexp(-1)).to(torch.float32)


decision_head = torch.library.custom_op("nemodiff::decision_head", decision_head_reference, mutates_args=())


@decision_head.register_fake
def _(logits: Tensor, mask_token_id: int) -> tuple[Tensor, Tensor]:
    return (
        torch.empty(logits.shape[:-1], dtype=torch.int64, device=logits.device),
        torch.empty(logits.shape[:-1], dtype=torch.float32, device=logits.device),
    )

"""`nemodiff::commit_masks`: which masked positions of a block a bidirectional pass fixes.

The most confident ones, as many as the quota asks for, and every other whose confidence reaches the threshold; ties go to the
lowest offset. A confidence that is NaN is less than any other and reaches no threshold, but a quota may still take it: a pass
over an open row always makes progress.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Below any probability: a NaN at a masked position, then positions that are no mask.
UNSURE, KNOWN = -1.0, -2.0

Committed = tuple[Tensor, Tensor, Tensor, Tensor]


def commit_masks_reference(
    block: Tensor,
    token: Tensor,
    confidence: Tensor,
    quota: Tensor,
    mask_token_id: int,
    eos_token_id: int,
    threshold: float | None = None,
) -> Committed:
    """Fix masked positions of the open rows.

    Args:
        block: int64 [B,S], known tokens, the seed at offset 0, and mask ids.
        token: int64 [B,S], what the pass predicts at every position; never the mask id.
        confidence: fp32 [B,S], probability of `token`, 0 to 1 or NaN.
        quota: int64 [B], positions to fix whatever their confidence; 0 for a closed row, which stays as it is.
        mask_token_id: marks the positions to fill.
        eos_token_id: end of sequence, -1 for none.
        threshold: least confidence that is enough, 0 to 1; None for the quota alone.

    Returns:
        Block int64 [B,S] after the pass; number of positions fixed int64 [B]; masks left int64 [B]; offset of the first
        end-of-sequence token behind the seed that has no mask before it, int64 [B], S where there is none. A block is complete
        when no mask is left or that offset is less than S.
    """
    step = block.shape[1]
    offsets = torch.arange(step, device=block.device)
    masked = (block == mask_token_id) & (quota > 0)[:, None]
    score = torch.where(masked, torch.where(confidence.isnan(), UNSURE, confidence), KNOWN)
    mine, other = score[:, :, None], score[:, None, :]
    is_ahead = (other > mine) | ((other == mine) & (offsets[None, None, :] < offsets[None, :, None]))
    commit = is_ahead.sum(-1) < quota[:, None]
    if threshold is not None:
        commit = commit | (score >= threshold)
    commit = commit & masked
    ids = torch.where(commit, token, block)
    is_mask = ids == mask_token_id
    first_mask = torch.where(is_mask, offsets, step).amin(1)
    first_end = torch.where((ids == eos_token_id) & (offsets > 0), offsets, step).amin(1)
    return ids, commit.sum(1), is_mask.sum(1), torch.where(first_end < first_mask, first_end, step)


commit_masks = torch.library.custom_op("nemodiff::commit_masks", commit_masks_reference, mutates_args=())


@commit_masks.register_fake
def _(
    block: Tensor, token: Tensor, confidence: Tensor, quota: Tensor, *_others: object
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return torch.empty_like(block), torch.empty_like(quota), torch.empty_like(quota), torch.empty_like(quota)

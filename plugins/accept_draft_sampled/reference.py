"""`nemodiff::accept_draft_sampled`: speculative rejection sampling over a drafted block.

A draft x drawn with probability q(x) is kept with probability min(1, p(x) / q(x)), where p is the verifier's distribution. The
first one that is not kept is replaced by a draw from (p - q)+, and what follows it is dropped; where all are kept, one more
token is drawn from p. The emitted tokens are then distributed as if each were drawn from p (Leviathan et al., arXiv
2211.17192).
"""

from __future__ import annotations

import torch
from torch import Tensor

from nemodiff_trt.plugins.accept_draft.reference import Accepted, emit_candidates


def accept_draft_sampled_reference(
    block: Tensor,
    draft_probabilities: Tensor,
    verify_probabilities: Tensor,
    uniforms: Tensor,
    cache_length: Tensor,
    remaining: Tensor,
    end_token_ids: Tensor,
) -> Accepted:
    """Accept drafts row by row.

    Args:
        block: int64 [B,S], seed and drafts.
        draft_probabilities: fp32 or fp64 [B,S-1,V]; row i is the distribution that block[:, i+1] was drawn from.
        verify_probabilities: same dtype [B,S,V]; row i is the verifier's distribution of the successor of block[:, i].
        uniforms: same dtype [B,S], independent, 0 <= u < 1. The first S-1 decide about the drafts, the last draws a token.
        cache_length: int64 [B], as in `accept_draft_reference`.
        remaining: int64 [B], as there.
        end_token_ids: int64 [E], as there.

    Returns:
        As `accept_draft_reference`. Probabilities must be finite and not negative; rows need not sum to one exactly.
    """
    batch, step = block.shape
    drafts = block[:, 1:, None]
    p = verify_probabilities[:, :-1].gather(2, drafts)[..., 0]
    q = draft_probabilities.gather(2, drafts)[..., 0]
    # u < p / q without the division; u is below 1, so p >= q always keeps the draft, and p = 0 never does.
    differs = torch.ones_like(block, dtype=torch.bool)
    differs[:, :-1] = uniforms[:, :-1] * q >= p
    offsets = torch.arange(step, device=block.device)
    matched = torch.where(differs, offsets, step).amin(1)
    rows = torch.arange(batch, device=block.device)
    target = verify_probabilities[rows, matched]
    # Behind the last draft there is no q: a row of zeros.
    drafted = torch.cat((draft_probabilities, torch.zeros_like(verify_probabilities[:, :1])), 1)[rows, matched]
    own = draw(residual(target, drafted), uniforms[:, -1])
    moved = torch.cat((block[:, 1:], own[:, None]), 1)
    candidates = torch.where(offsets == matched[:, None], own[:, None], moved)
    return emit_candidates(block[:, 0], candidates, matched, (cache_length, remaining, end_token_ids))


def residual(p: Tensor, q: Tensor) -> Tensor:
    """(p - q)+ [B,V], and p where that is nothing but zeros: rounding alone refuses a draft when both are equal."""
    rest = (p - q).clamp(min=0)
    return torch.where(rest.sum(-1, keepdim=True) > 0, rest, p)


def draw(weights: Tensor, uniforms: Tensor) -> Tensor:
    """Ids int64 [B] with probability proportional to `weights` [B,V]: the first whose running sum exceeds u times the total."""
    running = weights.cumsum(-1)
    token = (running <= uniforms[:, None] * running[:, -1:]).sum(-1)
    # Rounding may leave every running sum below the goal: then it is the last id that has any weight.
    ids = torch.arange(weights.shape[-1], device=weights.device)
    return torch.minimum(token, torch.where(weights > 0, ids, 0).amax(-1))


accept_draft_sampled = torch.library.custom_op(
    "nemodiff::accept_draft_sampled", accept_draft_sampled_reference, mutates_args=()
)


@accept_draft_sampled.register_fake
def _(
    block: Tensor,
    draft_probabilities: Tensor,
    verify_probabilities: Tensor,
    uniforms: Tensor,
    cache_length: Tensor,
    remaining: Tensor,
    end_token_ids: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    accepted, count, seed, length, left = (torch.empty_like(cache_length) for _ in range(5))
    return accepted, torch.empty_like(block), count, seed, length, left

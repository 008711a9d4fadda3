"""`nemodiff::accept_draft`: how much of a draft the verifier agrees with, what is emitted, where the next cycle starts.

Greedy acceptance: the longest prefix of the draft that equals the verifier's own choices, and the verifier's next token with it
(arXiv 2607.05722, linear self-speculation). Everything a cycle hands to the next one stays on the device.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Accepted drafts, emitted tokens, their number, next seed, next cache length, tokens that may still be emitted.
Accepted = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]
# Fills `emitted` behind the emitted tokens.
NO_TOKEN = -1


def accept_draft_reference(
    block: Tensor, verified: Tensor, cache_length: Tensor, remaining: Tensor, end_token_ids: Tensor
) -> Accepted:
    """Accept drafts row by row.

    Args:
        block: int64 [B,S], seed and drafts.
        verified: int64 [B,S], the verifier's successor of every token of `block`.
        cache_length: int64 [B], tokens in the cache before the cycle; the seed is not among them.
        remaining: int64 [B], tokens the row may still emit; 0 for a row that is finished, which stays as it is.
        end_token_ids: int64 [E], end of sequence and stop tokens; the first one emitted ends the row. E may be 0, but
            not in an engine, where -1 stands for none.

    Returns:
        Number of drafts that were emitted [B]; emitted tokens [B,S], -1 behind them; their number [B], at most S; the next
        seed [B], which is the last one emitted; cache length [B], seed and accepted drafts included; tokens that may still be
        emitted [B], 0 once the row has ended. All int64.
    """
    step = block.shape[1]
    differs = torch.ones_like(block, dtype=torch.bool)
    # The last column has no draft to compare with: it always ends the prefix.
    differs[:, :-1] = block[:, 1:] != verified[:, :-1]
    matched = torch.where(differs, torch.arange(step, device=block.device), step).amin(1)
    return emit_candidates(block[:, 0], verified, matched, (cache_length, remaining, end_token_ids))


def emit_candidates(seed: Tensor, candidates: Tensor, matched: Tensor, state: tuple[Tensor, Tensor, Tensor]) -> Accepted:
    """Emit up to `matched` + 1 of `candidates` [B,S], less at an end or at the limit.

    Args:
        seed: [B], kept where nothing is emitted.
        candidates: accepted drafts and, behind them, a token of the verifier's own.
        matched: [B], accepted drafts.
        state: cache length, tokens that may still be emitted, ids that end a row.
    """
    cache_length, remaining, end_token_ids = state
    step = candidates.shape[1]
    offsets = torch.arange(step, device=seed.device)
    is_end = (candidates[:, :, None] == end_token_ids).any(-1)
    first_end = torch.where(is_end, offsets, step).amin(1)
    wanted = torch.minimum(matched, first_end) + 1
    count = torch.minimum(wanted, remaining.clamp(min=0))
    emitted = torch.where(offsets < count[:, None], candidates, NO_TOKEN)
    last = candidates.gather(1, (count - 1).clamp(min=0)[:, None])[:, 0]
    has_ended = first_end < count
    left = torch.where(has_ended, 0, remaining.clamp(min=0) - count)
    accepted = torch.minimum(count, matched)
    return accepted, emitted, count, torch.where(count > 0, last, seed), cache_length + count, left


accept_draft = torch.library.custom_op("nemodiff::accept_draft", accept_draft_reference, mutates_args=())


@accept_draft.register_fake
def _(
    block: Tensor, verified: Tensor, cache_length: Tensor, remaining: Tensor, end_token_ids: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    accepted, count, seed, length, left = (torch.empty_like(cache_length) for _ in range(5))
    return accepted, torch.empty_like(block), count, seed, length, left

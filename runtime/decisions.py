"""The decisions between two engine runs: pure functions of the small arrays of one row.

`block` int64 [S] holds the seed at offset 0, then known tokens and mask ids.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class CommitRule:
    """Which masked positions a pass fixes: the most confident one always, and
    with a `threshold` every other of at least that confidence, without one as many as an even schedule over `steps` asks for.
    """

    threshold: float | None
    steps: int = 1

    def quota(self, step: int, num_masks: int) -> int:
        """Positions to fix at `step` of a block that started with `num_masks` masks; the first steps take the remainder."""
        if self.threshold is not None:
            return 1
        share, remainder = divmod(num_masks, self.steps)
        return max(1, share + (step < remainder))


def commit_masks(
    block: np.ndarray, token: np.ndarray, confidence: np.ndarray, mask_token_id: int, threshold: float | None, quota: int
) -> list[int]:
    """Fix masked positions in place by the rule of `CommitRule`; ties go to the lowest offset.

    Args:
        block: int64 [S].
        token: int64 [S], guesses of a bidirectional run over `block`.
        confidence: float32 [S], their probabilities.
        mask_token_id: marks the positions to fill.
        threshold: least confidence that is enough.
        quota: number of most confident positions to fix regardless.

    Returns:
        Offsets of the positions fixed now, in order.
    """
    masked = np.flatnonzero(block == mask_token_id)
    among = confidence[masked]
    if quota == 1:
        # An empty block has no best.
        best = masked[among.argmax() : among.argmax() + 1] if len(masked) else masked
    else:
        best = masked[np.argsort(-among, kind="stable")[:quota]]
    chosen = best if threshold is None else np.union1d(best, masked[among >= threshold])
    block[chosen] = token[chosen]
    offsets: list[int] = np.sort(chosen).tolist()
    return offsets


def accept_draft(block: np.ndarray, verified: np.ndarray) -> int:
    """Length of the longest prefix with verified[i] == block[i+1], 0 to S-1.

    Args:
        block: int64 [S], seed and drafts.
        verified: int64 [S], the causal successor of every token of `block`.
    """
    differs = np.flatnonzero(block[1:] != verified[:-1])
    return int(differs[0]) if len(differs) else len(block) - 1

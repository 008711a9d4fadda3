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


def most_confident(confidence: np.ndarray, threshold: float | None, quota: int) -> np.ndarray:
    """Which of several masked positions a pass fixes, by the rule of `CommitRule`; ties go to the lowest index.

    Args:
        confidence: float32 [N], probabilities of the guesses.
        threshold: least confidence that is enough.
        quota: number of most confident positions to fix regardless.

    Returns:
        Indices int64, in order.
    """
    if quota == 1:
        # Nothing has no best.
        best = np.array([confidence.argmax()]) if len(confidence) else np.empty(0, np.int64)
    else:
        best = np.argsort(-confidence, kind="stable")[:quota]
    chosen = best if threshold is None else np.concatenate([best, np.flatnonzero(confidence >= threshold)])
    return np.unique(chosen)


def accept_draft(drafts: np.ndarray, verified: np.ndarray) -> int:
    """Length of the longest prefix with drafts[i] == verified[i], 0 to N.

    Args:
        drafts: int64 [N].
        verified: int64 [N+1] or longer, the causal successor of the seed and of every draft.
    """
    differs = np.flatnonzero(drafts != verified[: len(drafts)])
    return int(differs[0]) if len(differs) else len(drafts)

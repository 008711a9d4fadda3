"""The decisions between two engine runs, on whole batches: pure functions of small arrays.

`block` int64 [B,S] holds the seed of each row at offset 0, then known tokens and mask ids.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from nemodiff_trt.runtime.session import StepOutput


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


def next_block(block: np.ndarray, seeds: list[int], mask_token_id: int) -> None:
    """Start a block in place: the seeds [B] at offset 0, masks behind them."""
    block[:, 0] = seeds
    block[:, 1:] = mask_token_id


def commit_masks(
    block: np.ndarray, output: StepOutput, is_open: np.ndarray, mask_token_id: int, threshold: float | None, quota: int
) -> np.ndarray:
    """Fix masked positions in place by the rule of `CommitRule`; ties go to the lowest offset.

    Args:
        block: int64 [B,S].
        output: token and confidence of a bidirectional run over `block`.
        is_open: bool [B]; other rows stay as they are.
        mask_token_id: marks the positions to fill.
        threshold: least confidence that is enough.
        quota: number of most confident positions to fix regardless.

    Returns:
        bool [B,S], the positions fixed now.
    """
    masked: np.ndarray = (block == mask_token_id) & is_open[:, None]
    # Below any probability, so that known positions come last.
    confidence = np.where(masked, output.confidence, np.float32(-1))
    commit = np.zeros(block.shape, np.bool_)
    if quota == 1:
        commit[np.arange(len(block)), confidence.argmax(axis=1)] = True
    else:
        order = np.argsort(-confidence, axis=1, kind="stable")
        np.put_along_axis(commit, order[:, :quota], True, axis=1)
    if threshold is not None:
        commit |= confidence >= threshold
    commit &= masked
    np.copyto(block, output.token, where=commit)
    return commit


def accept_draft(block: np.ndarray, verified: np.ndarray) -> np.ndarray:
    """Length int64 [B] of the longest prefix with verified[i] == block[i+1], 0 to S-1.

    Args:
        block: int64 [B,S], seed and drafts.
        verified: int64 [B,S], the causal successor of every token of `block`.
    """
    # The last column has no draft to compare with: it always ends the prefix.
    differs = np.ones(block.shape, np.bool_)
    np.not_equal(block[:, 1:], verified[:, :-1], out=differs[:, :-1])
    accepted: np.ndarray = differs.argmax(axis=1)
    return accepted

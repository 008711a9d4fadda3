"""One pass over a block of masks: guess all of them, keep the guesses that are sure enough."""

from __future__ import annotations

import numpy as np

from nemodiff_trt.runtime.decisions import most_confident
from nemodiff_trt.runtime.rows.decider import Decider
from nemodiff_trt.runtime.rows.row_decoder import RowOutput


def fix_masks(
    block: np.ndarray,
    output: RowOutput,
    decider: Decider,
    mask_token_id: int,
    threshold: float | None,
    quota: int,
    position: int,
) -> list[tuple[int, int]]:
    """Fill masks of `block` int64 [S] in place, by the rule of `most_confident`; `position` is the place of its first token.

    Returns:
        (offset, token) of those fixed now, in order.
    """
    masked = np.flatnonzero(block == mask_token_id)
    guesses = decider.guess(output, masked, position)
    chosen = most_confident(decider.confidence(output, masked, guesses), threshold, quota)
    return _fix(block, masked[chosen], guesses[chosen])


def fix_scored_masks(
    block: np.ndarray, token: np.ndarray, scores: np.ndarray, mask_token_id: int, threshold: float
) -> list[tuple[int, int]]:
    """The same by `scores` float32 [S] of the guesses `token` int64 [S]: the best one, and all that reach the threshold."""
    masked = np.flatnonzero(block == mask_token_id)
    chosen = masked[most_confident(scores[masked], threshold, 1)]
    return _fix(block, chosen, token[chosen])


def _fix(block: np.ndarray, offsets: np.ndarray, tokens: np.ndarray) -> list[tuple[int, int]]:
    block[offsets] = tokens
    return list(zip(offsets.tolist(), tokens.tolist(), strict=True))

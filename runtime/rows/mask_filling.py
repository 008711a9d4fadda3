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
    scores: np.ndarray | None = None,
) -> list[tuple[int, int]]:
    """Fill masks of `block` int64 [S] in place, by the rule of `most_confident`; `position` is the place of its first token.

    `scores` float32 [S] take the place of the decider's confidence, where given.

    Returns:
        (offset, token) of those fixed now, in order.
    """
    masked = np.flatnonzero(block == mask_token_id)
    guesses = decider.guess(output, masked, position)
    confidence = decider.confidence(output, masked, guesses) if scores is None else scores[masked]
    chosen = most_confident(confidence, threshold, quota)
    block[masked[chosen]] = guesses[chosen]
    return list(zip(masked[chosen].tolist(), guesses[chosen].tolist(), strict=True))

"""The greedy bound: an oracle that commits at once whatever the model already has right.

Source: arXiv 2607.05722, section 4. It is no bound in the strict sense: a step without any match commits a token that is
not the target's, and then the block ends in something else. `is_exact` says when.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from nemodiff_trt.runtime.speed_of_light.serial import (
    Denoise,
    SerialTrajectory,
    SpecialTokens,
    most_confident,
    num_settled,
)


@dataclass(frozen=True, slots=True)
class GreedyBound:
    """Denoise runs of greedy acceptance, and whether the block ended in the serial target."""

    num_steps: int
    is_exact: bool


def greedy_bound(denoise: Denoise, block: np.ndarray, trajectory: SerialTrajectory, special: SpecialTokens) -> GreedyBound:
    """Fill `block` int64 [S] with greedy acceptance; arguments as of `serial_denoise`, and its result for the block."""
    state, num_steps = block.copy(), 0
    while num_settled(state, special) is None:
        token, confidence = denoise(state)
        chosen = accepted(token, confidence, state, trajectory, special)
        state[chosen] = token[chosen]
        num_steps += 1
    return GreedyBound(num_steps, trajectory.is_reached_by(state))


def accepted(
    token: np.ndarray, confidence: np.ndarray, state: np.ndarray, trajectory: SerialTrajectory, special: SpecialTokens
) -> np.ndarray:
    """Positions that greedy acceptance commits: all matches, or the most confident mask where there is none."""
    found = matches(token, confidence, state, trajectory, special)
    return found if len(found) else np.array([most_confident(confidence, state == special.mask)])


def matches(
    token: np.ndarray, confidence: np.ndarray, state: np.ndarray, trajectory: SerialTrajectory, special: SpecialTokens
) -> np.ndarray:
    """Masked positions whose argmax is the target's token, the most confident first; of equal ones the first.

    A position the target left masked never matches, since no decision is the mask id.
    """
    found = np.flatnonzero((state == special.mask) & (token == trajectory.target))
    return found[np.argsort(-confidence[found], kind="stable")]

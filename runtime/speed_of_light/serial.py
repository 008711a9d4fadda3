"""The serial target: one token a step, the most confident first.

Source: arXiv 2607.05722, section 4, and appendix A for its use as the target of a learned sampler.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

# Block int64 [S] with masks -> token int64 [S] and confidence float32 [S] of every position; a function of the block alone.
Denoise = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True, slots=True)
class SpecialTokens:
    """Ids that decide when a block is finished. Without `eos` only a block without masks is."""

    mask: int
    eos: int | None


@dataclass(frozen=True, slots=True)
class SerialStep:
    """One denoise run of the trajectory: its block int64 [S], the decisions [S], and the position that was committed."""

    block: np.ndarray
    token: np.ndarray
    confidence: np.ndarray
    position: int


@dataclass(frozen=True, slots=True)
class SerialTrajectory:
    """How serial denoising filled a block.

    Attributes:
        steps: its denoise runs, in order.
        target: int64 [S], the block in the end. Positions right of an EOS may still be masks: the answer does not have them.
        num_needed: leading tokens of `target` that belong to the answer; no mask is among them.
    """

    steps: tuple[SerialStep, ...]
    target: np.ndarray
    num_needed: int

    @property
    def order(self) -> tuple[int, ...]:
        """Positions as they were committed."""
        return tuple(step.position for step in self.steps)

    def is_reached_by(self, block: np.ndarray) -> bool:
        """Whether `block` int64 [S] holds the same part of the answer."""
        return bool(np.array_equal(block[: self.num_needed], self.target[: self.num_needed]))


def serial_denoise(denoise: Denoise, block: np.ndarray, special: SpecialTokens) -> SerialTrajectory:
    """Commit the argmax of the most confident masked position, one a step, until the block is finished.

    Args:
        denoise: decides all positions of a block; must never decide for the mask id.
        block: int64 [S], known tokens and masks. Not changed.
        special: the mask id, and the EOS that ends a block early.
    """
    state, steps = block.copy(), []
    while (needed := num_settled(state, special)) is None:
        token, confidence = denoise(state)
        position = most_confident(confidence, state == special.mask)
        steps.append(SerialStep(state.copy(), token, confidence, position))
        state[position] = token[position]
    return SerialTrajectory(tuple(steps), state, needed)


def num_settled(block: np.ndarray, special: SpecialTokens) -> int | None:
    """Leading tokens that belong to the answer, up to the first EOS or the end; None while a mask is among them."""
    ends = np.flatnonzero(block == special.eos) if special.eos is not None else np.empty(0, np.int64)
    needed = int(ends[0]) + 1 if len(ends) else len(block)
    return None if special.mask in block[:needed] else needed


def most_confident(confidence: np.ndarray, allowed: np.ndarray) -> int:
    """Position of the highest confidence among `allowed`, both [S]; of equal ones the first."""
    return int(np.argmax(np.where(allowed, confidence, -np.inf)))

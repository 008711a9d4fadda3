"""The layout of a quadratic step: how its tokens relate to each other, where the other roles have a fixed rule.

All queries of a step see the whole valid cache. Keys and values of all S tokens are written behind it in the order of the step,
so a caller that keeps the first m tokens adds m to the cache length and nothing has to be moved.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nemodiff_trt.errors import InvalidInputError


@dataclass(slots=True)
class StepLayout:
    """Of one row: arrays [S] and [S,S]; of a batch: [B,S] and [B,S,S].

    Attributes:
        position_offset: int64; the position of step token s is cache_length + position_offset[s], 0 to S - 1.
        step_mask: bool; query s sees step token t. Every token sees itself.
        adapter_rows: float32; 1 where the draft adapter applies, 0 where the base weights run alone.
    """

    position_offset: np.ndarray
    step_mask: np.ndarray
    adapter_rows: np.ndarray

    @classmethod
    def zeros(cls, *shape: int) -> StepLayout:
        """Arrays to fill, of one row for the shape S and of a batch for B, S."""
        return cls(np.zeros(shape, np.int64), np.zeros((*shape, shape[-1]), np.bool_), np.zeros(shape, np.float32))

    @classmethod
    def causal(cls, step: int) -> StepLayout:
        """Of one row, as in a verify step."""
        return cls(np.arange(step), np.tri(step, dtype=np.bool_), np.zeros(step, np.float32))

    @classmethod
    def stack(cls, rows: Sequence[StepLayout]) -> StepLayout:
        """The layout of a batch from those of its rows."""
        return cls(
            np.stack([row.position_offset for row in rows]),
            np.stack([row.step_mask for row in rows]),
            np.stack([row.adapter_rows for row in rows]),
        )

    def row(self, index: int) -> StepLayout:
        """One row of a batch, as views."""
        return StepLayout(self.position_offset[index], self.step_mask[index], self.adapter_rows[index])

    def copy_from(self, other: StepLayout | None) -> None:
        """Take over `other`, a layout of the same shape, after a look at it.

        Raises:
            InvalidInputError: there is none, a shape or dtype differs, or a position lies outside the step.
        """
        if other is None:
            raise InvalidInputError("layout", None, "the layout of the step, for a quadratic step")
        for name in ("position_offset", "step_mask", "adapter_rows"):
            mine, theirs = getattr(self, name), getattr(other, name)
            if (theirs.shape, theirs.dtype) != (mine.shape, mine.dtype):
                raise InvalidInputError(f"layout.{name}", f"{theirs.dtype} {theirs.shape}", f"{mine.dtype} {mine.shape}")
        step = other.position_offset.shape[-1]
        if other.position_offset.min() < 0 or other.position_offset.max() >= step:
            raise InvalidInputError("layout.position_offset", other.position_offset.tolist(), f"0 to {step - 1}")
        np.copyto(self.position_offset, other.position_offset)
        np.copyto(self.step_mask, other.step_mask)
        np.copyto(self.adapter_rows, other.adapter_rows)

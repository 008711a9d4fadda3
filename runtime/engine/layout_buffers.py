"""Preallocated layouts of quadratic steps."""

from __future__ import annotations

import numpy as np

from nemodiff_trt.runtime.step_layout import StepLayout


class LayoutBuffers:
    """One layout for every shape that was used. Rows nobody fills are valid: every token sees itself alone."""

    __slots__ = ("_layouts",)

    def __init__(self) -> None:
        self._layouts: dict[tuple[int, int], StepLayout] = {}

    def of(self, batch: int, step: int) -> StepLayout:
        """The layout of B rows of S tokens, with what an earlier step left in it."""
        layout = self._layouts.get((batch, step))
        if layout is None:
            layout = self._layouts[batch, step] = StepLayout.zeros(batch, step)
            layout.step_mask |= np.eye(step, dtype=np.bool_)
        return layout

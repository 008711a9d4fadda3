"""What the fitted terms of a role miss at the steps that were measured: measured over predicted time, between which others lie.

Kernels change with the number of rows in ways no smooth form follows, and rows of unequal length cost more the more rows there
are, so a fit alone errs by a fifth in places.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Self

import numpy as np


@dataclass(frozen=True, slots=True)
class LocalFactors:
    """`table[S][B][history]`: the factor at a measured step length, batch size and mean history; positive. Keys ascend."""

    table: Mapping[int, Mapping[int, Mapping[int, float]]]

    @classmethod
    def of_ratios(cls, ratios: Iterable[tuple[int, int, int, float]]) -> Self:
        """Of (S, B, history, measured over predicted time)."""
        table: dict[int, dict[int, dict[int, float]]] = {}
        for step, batch, history, ratio in sorted(ratios):
            table.setdefault(step, {}).setdefault(batch, {})[history] = ratio
        return cls(table)

    def row(self, step: int, batches: np.ndarray, history: float) -> np.ndarray:
        """Of several batch sizes, float64 like `batches`: interpolated over the logarithms of S and B, and over the history.

        Outside of what was measured it is the nearest.
        """
        steps = list(self.table)
        above = min(bisect_left(steps, step), len(steps) - 1)
        below = above if steps[above] <= step or above == 0 else above - 1
        at_above, at_below = (self._of_step(steps[place], batches, history) for place in (above, below))
        if above == below:
            return at_above
        share = math.log(step / steps[below]) / math.log(steps[above] / steps[below])
        return (1 - share) * at_below + share * at_above

    def _of_step(self, step: int, batches: np.ndarray, history: float) -> np.ndarray:
        measured = self.table[step]
        factors = [np.interp(history, list(own), list(own.values())) for own in measured.values()]
        found: np.ndarray = np.interp(np.log(batches), np.log(list(measured)), factors)
        return found

    def to_json(self) -> list[list[float]]:
        """Lines of S, B, history and factor."""
        return [
            [step, batch, history, factor]
            for step, batches in self.table.items()
            for batch, histories in batches.items()
            for history, factor in histories.items()
        ]

    @classmethod
    def from_json(cls, lines: Iterable[tuple[int, int, int, float]]) -> Self:
        """Of `to_json`.

        Raises:
            ValueError: not such lines.
        """
        ratios = [(int(step), int(batch), int(history), float(factor)) for step, batch, history, factor in lines]
        if not ratios or any(min(step, batch) < 1 or not 0 < factor < math.inf for step, batch, _, factor in ratios):
            raise ValueError("a local factor is not a positive number for a step length and a batch size")
        return cls.of_ratios(ratios)

"""What the fitted terms of a role miss at the steps that were measured: measured over predicted time, between which others lie.

Kernels change with the number of rows in ways no smooth form follows, and rows of unequal length cost more the more rows there
are, so a fit alone errs by a fifth in places.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Self


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

    def at(self, step: int, batch: int, history: float) -> float:
        """Interpolated over the logarithms of S and B, and over the history; outside, the nearest."""
        return _between(
            self.table,
            step,
            math.log,
            lambda batches: _between(batches, batch, math.log, lambda histories: _between(histories, history, float, float)),
        )

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


def _between(points: Mapping[int, Any], place: float, scale: Callable[[float], float], value: Callable[[Any], float]) -> float:
    """`value` of the points, whose keys ascend, interpolated at `place`; distances are those of `scale`."""
    keys = list(points)
    after = bisect_right(keys, place)
    if after == 0 or after == len(keys) or keys[after - 1] == place:
        return value(points[keys[max(after - 1, 0)]])
    below, above = keys[after - 1], keys[after]
    share = (scale(place) - scale(below)) / (scale(above) - scale(below))
    return (1 - share) * value(points[below]) + share * value(points[above])

"""Predicted speed of requests that decode in one way, or in two groups of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from nemodiff_trt.runtime.row_ranges import ranges
from nemodiff_trt.vocabulary import Objective


def best_split(
    order: Sequence[int], worth: np.ndarray, cost: np.ndarray, slots: Sequence[int], objective: Objective
) -> tuple[float, list[int]]:
    """The best two groups, cut from the requests in `order`: their speed, and the candidate of every request.

    Args:
        order: of the requests, a permutation of 0 to R - 1.
        worth: of every request and candidate, float64 [R, C] (see `worth_of`).
        cost: milliseconds of a cycle by candidate and number of rows, float64 [C, rows + 1].
        slots: of the requests.
        objective: what speed is.
    """
    count, ordered = len(order), [slots[place] for place in order]
    # Candidates [first, second, size of the first group].
    below = _summed(worth[list(order)])
    above = below[:, -1:] - below
    below_ms = runs_ms(cost, [ordered[:cut] for cut in range(count + 1)])
    above_ms = runs_ms(cost, [ordered[cut:] for cut in range(count + 1)])
    speeds = speed_of(below[:, None] + above[None], below_ms[:, None] + above_ms[None], count, objective)
    # Two groups that decode alike are one.
    alike = np.arange(len(cost))
    speeds[alike, alike, 1:] = 0.0
    first, second, cut = (int(place) for place in np.unravel_index(speeds.argmax(), speeds.shape))
    best = [second] * count
    for place in order[:cut]:
        best[place] = first
    return float(speeds[first, second, cut]), best


def _summed(values: np.ndarray) -> np.ndarray:
    """Sums of the first 0 to R rows of `values` [R, C], float64 [C, R + 1]."""
    found = np.zeros((values.shape[1], len(values) + 1))
    np.cumsum(values.T, axis=1, out=found[:, 1:])
    return found


def runs_ms(cost: np.ndarray, groups: Sequence[Sequence[int]]) -> np.ndarray:
    """Milliseconds of a cycle of each group of slots, by candidate [C, groups]: rows between them may be computed along."""
    sizes: list[int] = []
    begins = []
    for slots in groups:
        begins.append(len(sizes))
        # No slots are no run, of no rows.
        sizes += [end - begin for begin, end in ranges(slots)] or [0]
    found: np.ndarray = np.add.reduceat(cost[:, sizes], begins, axis=1)
    return found


def worth_of(tokens: np.ndarray, objective: Objective) -> np.ndarray:
    """What is added up over requests: tokens of a cycle, or cycles of a token."""
    return tokens if objective is Objective.THROUGHPUT else 1 / tokens


def speed_of(worth: np.ndarray, ms: np.ndarray | float, count: int, objective: Objective) -> np.ndarray:
    """Tokens per millisecond of `count` requests: their sum, or `count` times their harmonic mean."""
    return (worth if objective is Objective.THROUGHPUT else count * count / worth) / ms

"""How long the runs of the loop took against the calibrated times: caches are warm or not, and other work shares the device."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence

import numpy as np

# Runs that are remembered of a kind, an odd number, and what all kinds together count as for one of them.
_MOST_RUNS, _PRIOR_RUNS = 15, 2.0


class LoopTimes:
    """Measured over calibrated time by kind of step; batch sizes between two powers of two count as one.

    It is the median of the last runs, because a run that something interrupted takes many times as long. A kind that did not
    run yet takes the mean of those that did: what all have in common, such as a device that runs slower today, then changes no
    choice.
    """

    __slots__ = ("_bucket", "_log_ratio", "_num_runs", "_recent")

    def __init__(self, kinds: Sequence[int], max_batch: int) -> None:
        """Start with a ratio of one.

        Args:
            kinds: shape of the array of kinds.
            max_batch: rows of the largest batch.
        """
        self._bucket = [0, *((batch - 1).bit_length() for batch in range(1, max_batch + 1))]
        shape = (*kinds, self._bucket[-1] + 1)
        self._log_ratio, self._num_runs = np.zeros(shape), np.zeros(shape)
        self._recent: dict[tuple[int, ...], deque[float]] = {}

    def observe(self, kind: tuple[int, ...], batch: int, ratio: float) -> None:
        """Take in a run that took `ratio` times its calibrated time, a positive number."""
        place = (*kind, self._bucket[batch])
        recent = self._recent.get(place)
        if recent is None:
            recent = self._recent[place] = deque(maxlen=_MOST_RUNS)
        recent.append(ratio)
        self._log_ratio[place] = math.log(sorted(recent)[len(recent) // 2])
        self._num_runs[place] = len(recent)

    def num_runs(self, batch: int) -> np.ndarray:
        """Runs of every kind with about so many rows, no more than count; float64 [*kinds]."""
        found: np.ndarray = self._num_runs[..., self._bucket[batch]]
        return found

    def factors(self, max_batch: int) -> np.ndarray:
        """By kind and batch size, float64 [*kinds, max_batch + 1]."""
        weighted, num_runs = self._log_ratio * self._num_runs, self._num_runs.sum()
        common = weighted.sum() / num_runs if num_runs else 0.0
        found: np.ndarray = np.exp((weighted + _PRIOR_RUNS * common) / (self._num_runs + _PRIOR_RUNS))
        return found[..., self._bucket[: max_batch + 1]]

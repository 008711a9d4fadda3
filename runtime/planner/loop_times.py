"""How long the cycles of the loop take against their calibrated runs: what the host does, and caches that are warm or not."""

from __future__ import annotations

import math
from collections import deque

import numpy as np

# Cycles that are remembered, an odd number, and what all candidates together count as for one of them.
_MOST_RUNS, _PRIOR_RUNS = 15, 2.0


class LoopTimes:
    """Measured over calibrated time by candidate and number of rows, where those between two powers of two count as one.

    It is the median of the last cycles, because a cycle that something interrupted takes many times as long. What did not run
    yet takes the mean of what did: what all have in common, such as a device that runs slower today, then changes no choice.
    """

    __slots__ = ("_bucket", "_log_ratio", "_num_runs", "_recent", "_touched")

    def __init__(self, num_candidates: int, max_batch: int) -> None:
        """Start with ratios of one, for batches of up to `max_batch` rows."""
        self._bucket = [0, *((batch - 1).bit_length() for batch in range(1, max_batch + 1))]
        shape = (num_candidates, self._bucket[-1] + 1)
        self._log_ratio, self._num_runs = np.zeros(shape), np.zeros(shape)
        self._recent: dict[tuple[int, int], deque[float]] = {}
        self._touched: set[tuple[int, int]] = set()

    def observe(self, candidate: int, batch: int, ratio: float) -> None:
        """Take in a cycle that took `ratio` times its calibrated time, a positive number."""
        place = (candidate, self._bucket[batch])
        recent = self._recent.get(place)
        if recent is None:
            recent = self._recent[place] = deque(maxlen=_MOST_RUNS)
        recent.append(ratio)
        self._touched.add(place)
        self._log_ratio[place] = math.log(sorted(recent)[len(recent) // 2])
        self._num_runs[place] = len(recent)

    def age(self) -> None:
        """Forget the oldest cycle of what did not run since this was called last, but not all that is known of it."""
        for place, recent in self._recent.items():
            if place not in self._touched and len(recent) > 1:
                recent.popleft()
                self._num_runs[place] = len(recent)
        self._touched.clear()

    @property
    def has_runs(self) -> bool:
        """Whether any cycle was heard of."""
        return bool(self._recent)

    def num_runs(self, batch: int) -> np.ndarray:
        """Cycles of every candidate with about so many rows, no more than count; float64 [C]."""
        found: np.ndarray = self._num_runs[:, self._bucket[batch]]
        return found

    def factors(self, max_batch: int) -> np.ndarray:
        """By candidate and number of rows, float64 [C, max_batch + 1]."""
        weighted, num_runs = self._log_ratio * self._num_runs, self._num_runs.sum()
        common = weighted.sum() / num_runs if num_runs else 0.0
        found: np.ndarray = np.exp((weighted + _PRIOR_RUNS * common) / (self._num_runs + _PRIOR_RUNS))
        return found[:, self._bucket[: max_batch + 1]]

"""How long the runs of the loop took against the calibrated times: caches are warm or not, and other work shares the device."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

# Runs after which an older one counts no more than a new one, and what all runs together count as for one kind of step.
_MOST_RUNS, _PRIOR_RUNS = 16.0, 2.0
# A run that took many times as long was interrupted.
_LARGEST = math.log(4.0)


class LoopTimes:
    """Measured over calibrated time by kind of step; batch sizes between two powers of two count as one.

    A kind that did not run yet takes the mean of those that did: what all have in common, such as a device that runs slower
    today, then changes no choice.
    """

    __slots__ = ("_bucket", "_log_ratio", "_num_runs")

    def __init__(self, kinds: Sequence[int], max_batch: int) -> None:
        """Start with a ratio of one.

        Args:
            kinds: shape of the array of kinds.
            max_batch: rows of the largest batch.
        """
        self._bucket = np.array([0, *((batch - 1).bit_length() for batch in range(1, max_batch + 1))])
        shape = (*kinds, int(self._bucket[-1]) + 1)
        self._log_ratio, self._num_runs = np.zeros(shape), np.zeros(shape)

    def observe(self, kind: tuple[int, ...], batch: int, ratio: float) -> None:
        """Take in a run that took `ratio` times its calibrated time."""
        place = (*kind, self._bucket[batch])
        found = min(max(math.log(ratio), -_LARGEST), _LARGEST)
        self._num_runs[place] = min(self._num_runs[place] + 1, _MOST_RUNS)
        self._log_ratio[place] += (found - self._log_ratio[place]) / self._num_runs[place]

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

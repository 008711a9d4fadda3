"""How long the cycles of the loop take against their calibrated runs: what the host does, and caches that are warm or not."""

from __future__ import annotations

import math
from collections import deque

import numpy as np

# Cycles that are remembered, an odd number, and cycles after which a candidate's own times count as much as those of all.
_MOST_RUNS, _PRIOR_RUNS = 15, 2.0
# The pace follows the newest cycle by this share of what it tells, and no cycle tells more than this factor.
_NEWEST, _LARGEST = 0.1, math.log(1.5)
# With fewer cycles a candidate is not known, and held to be so much slower than calibrated: it has to be tried out first. Of
# what has not run for long, that many are forgotten.
_KNOWN_RUNS, _DOUBT = 3, 1.1


class LoopTimes:
    """Measured over calibrated time by candidate and number of rows, where those between two powers of two count as one.

    The device is faster at times and slower at others, whatever runs on it: this pace is followed by all cycles together, and
    what is kept of a candidate is relative to it. So a candidate that runs looks no worse than one that did not run since a
    faster time. Medians of the last cycles are kept, because a cycle that something interrupted takes many times as long.
    """

    __slots__ = ("_bucket", "_is_old", "_log_pace", "_log_ratio", "_num_observed", "_num_runs", "_recent", "_touched")

    def __init__(self, num_candidates: int, max_batch: int) -> None:
        """Start with ratios of one, for batches of up to `max_batch` rows."""
        self._bucket = [0, *((batch - 1).bit_length() for batch in range(1, max_batch + 1))]
        shape = (num_candidates, self._bucket[-1] + 1)
        self._log_ratio, self._num_runs = np.zeros(shape), np.zeros(shape)
        self._is_old = np.zeros(shape, bool)
        self._log_pace, self._num_observed = 0.0, 0
        self._recent: dict[tuple[int, int], deque[float]] = {}
        self._touched: set[tuple[int, int]] = set()

    def observe(self, candidate: int, batch: int, ratio: float) -> None:
        """Take in a cycle that took `ratio` times its calibrated time, a positive number."""
        place = (candidate, self._bucket[batch])
        surprise = math.log(ratio) - self._log_pace - self._log_ratio[place]
        if self._num_observed:
            surprise = min(max(surprise, -_LARGEST), _LARGEST)
        self._num_observed += 1
        self._log_pace += max(_NEWEST, 1 / self._num_observed) * surprise
        recent = self._recent.get(place)
        if recent is None:
            recent = self._recent[place] = deque(maxlen=_MOST_RUNS)
        recent.append(math.log(ratio) - self._log_pace)
        self._touched.add(place)
        self._is_old[place] = False
        self._keep(place)

    def age(self) -> None:
        """Take what did not run since this was called last for old, and forget the oldest cycles of it, if more are known."""
        for place, recent in self._recent.items():
            if place not in self._touched:
                self._is_old[place] = True
                for _ in range(min(_KNOWN_RUNS, len(recent) - _KNOWN_RUNS)):
                    recent.popleft()
                self._keep(place)
        self._touched.clear()

    def _keep(self, place: tuple[int, int]) -> None:
        recent = self._recent[place]
        self._num_runs[place] = len(recent)
        self._log_ratio[place] = sorted(recent)[len(recent) // 2] * len(recent) / (len(recent) + _PRIOR_RUNS)

    @property
    def has_runs(self) -> bool:
        """Whether any cycle was heard of."""
        return self._num_observed > 0

    def num_runs(self, batch: int) -> np.ndarray:
        """Cycles of every candidate with about so many rows, no more than count; float64 [C]."""
        found: np.ndarray = self._num_runs[:, self._bucket[batch]]
        return found

    def is_known(self, batch: int) -> np.ndarray:
        """Of every candidate with about so many rows, whether enough cycles were heard of, and one not long ago; bool [C]."""
        bucket = self._bucket[batch]
        found: np.ndarray = (self._num_runs[:, bucket] >= _KNOWN_RUNS) & ~self._is_old[:, bucket]
        return found

    def factors(self, max_batch: int) -> np.ndarray:
        """Relative to the pace, by candidate and number of rows, float64 [C, max_batch + 1]."""
        doubt = np.where(self._num_runs < _KNOWN_RUNS, _DOUBT, 1.0) if self._num_observed else 1.0
        found: np.ndarray = np.exp(self._log_ratio) * doubt
        return found[:, self._bucket[: max_batch + 1]]

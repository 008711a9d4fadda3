"""How long the cycles of the loop take against what was calibrated."""

from __future__ import annotations

import math
from typing import TypeVar

import numpy as np

_Number = TypeVar("_Number", float, np.ndarray)

# Standard deviations of logarithms, so about shares: of a cycle; and of stretches, however many cycles they have: a shared
# machine is slower and faster for milliseconds, seconds and minutes at a time, about as much for each, so that what lasts
# longer tells no more.
_CYCLE, _STRETCH = 0.1, 0.08
# What is not known of a candidate before it ran, because two calibrations differ, and loads in the work of the host: how
# drafting does against decoding without, and each candidate by itself; and how alike a candidate is with one number of rows and
# with another. More than what twelve loops learned, 0.08 (and once 0.33) in common and 0.03 of its own: with 0.05 in place of
# 0.06 a block length that was calibrated twice as slow as it is, alone, is tried once and never again.
_DRAFTING, _CANDIDATE, _ALIKE = 0.1, 0.06, 0.5
# By how much the pace changes in a millisecond, and however long nothing ran; and cycles after which a third is left of what
# was known of a candidate.
_PACE_DRIFT, _LARGEST_DRIFT, _MEMORY_CYCLES = 0.0045, 0.5, 2500.0
# Stretches tell no more than so many standard deviations of a single cycle: one that something interrupted takes several times
# as long. What surprises more is either that, or the device is another than before: ratios become more uncertain by so many
# times what is not known before anything runs, and the pace as if so much time had passed.
_LARGEST_SURPRISE, _UNEXPLAINED, _UNEXPLAINED_MS = 2.5, 2.0, 10_000.0
# What is less certain is held to be slower, by so much of its deviation.
_DOUBT = 0.25


class LoopTimes:
    """Measured over calibrated time by candidate and number of rows, where those between two powers of two count as one.

    The device is faster at times and slower at others, whatever runs on it. So a measured time is the product of a pace, which
    all cycles share, and of a ratio of the candidate, which changes little. Their logarithms are followed by a Kalman filter:
    it knows that a candidate that runs alone tells of the pace and next to nothing of its ratio to others, while one that is
    tried out between them tells of just that.
    """

    __slots__ = ("_bucket", "_covariance", "_factors", "_is_tried", "_log", "_prior", "_shape")

    def __init__(self, num_candidates: int, max_batch: int) -> None:
        """Start with ratios of one, for batches of up to `max_batch` rows. All candidates but the first draft."""
        self._bucket = [0, *((batch - 1).bit_length() for batch in range(1, max_batch + 1))]
        num_buckets = self._bucket[-1] + 1
        self._shape = (num_candidates, num_buckets)
        num_ratios = num_candidates * num_buckets
        # The pace, then the ratios by candidate and bucket.
        self._log = np.zeros(1 + num_ratios)
        own = _ALIKE + (1 - _ALIKE) * np.eye(num_buckets)
        # Of the ratios, float64 [C * buckets, C * buckets].
        drafts = np.arange(num_candidates) > 0
        alike = _CANDIDATE**2 * np.eye(num_candidates) + _DRAFTING**2 * np.outer(drafts, drafts)
        self._prior = np.kron(alike, own)
        self._covariance = np.eye(1 + num_ratios)
        self._covariance[1:, 1:] = self._prior
        # By candidate and bucket, with one more bucket at either end.
        self._is_tried = np.zeros((num_candidates, num_buckets + 2), bool)
        # What `factors` gives, None where it is to be computed anew.
        self._factors: np.ndarray | None = np.ones((num_candidates, max_batch + 1))

    def observe(self, candidate: int, batch: int, ratio: float, num_cycles: int, elapsed_ms: float) -> None:
        """Take in a stretch of cycles.

        Args:
            candidate: of the cycles.
            batch: rows of them.
            ratio: measured over calibrated time, positive.
            num_cycles: of the stretch.
            elapsed_ms: from the end of the stretch before to the end of this one.
        """
        log, covariance = self._log, self._covariance
        place = 1 + candidate * self._shape[1] + self._bucket[batch]
        self._forget(num_cycles, elapsed_ms)
        surprise = math.log(ratio) - float(log[0] + log[place])
        if self.has_cycles:
            most = _LARGEST_SURPRISE * math.sqrt(self._variance(place) + _noise(1))
            if abs(surprise) > most:
                surprise = math.copysign(most, surprise)
                covariance[1:, 1:] += _UNEXPLAINED * self._prior
                self._drift(_UNEXPLAINED_MS)
        with_time = covariance[0] + covariance[place]
        variance = self._variance(place) + _noise(num_cycles)
        gain = with_time / variance
        log += surprise * gain
        covariance -= np.outer(gain, with_time)
        self._factors = None
        self._is_tried[candidate, 1 + self._bucket[batch]] = True

    def _variance(self, place: int) -> float:
        """Of the logarithm of a time, without noise."""
        covariance = self._covariance
        return float(covariance[0, 0] + 2 * covariance[0, place] + covariance[place, place])

    def _forget(self, num_cycles: int, elapsed_ms: float) -> None:
        """Let so many cycles pass, and so much time: the pace goes somewhere, ratios become as uncertain as in the beginning.

        They stay what they were seen to be: the loop is nearer to how it was lately than to how it was calibrated.
        """
        covariance, kept = self._covariance, math.exp(-num_cycles / _MEMORY_CYCLES)
        covariance[1:] *= kept
        covariance[:, 1:] *= kept
        covariance[1:, 1:] += (1 - kept**2) * self._prior
        self._drift(elapsed_ms)

    def _drift(self, elapsed_ms: float) -> None:
        """Let the pace go somewhere."""
        self._covariance[0, 0] += min(elapsed_ms * _PACE_DRIFT**2, _LARGEST_DRIFT**2)

    def bucket(self, batch: int) -> int:
        """Batches of one bucket count as one."""
        return self._bucket[batch]

    @property
    def has_cycles(self) -> bool:
        """Whether any cycle was heard of."""
        return bool(self._is_tried.any())

    def untried(self, batch: int) -> np.ndarray:
        """Candidates of which no stretch was heard with about as many rows, half or twice as many; bool [C]."""
        bucket = self._bucket[batch]
        found: np.ndarray = np.logical_not(self._is_tried[:, bucket : bucket + 3].any(axis=1))
        return found

    def learnable(self, best: int, batch: int, num_cycles: np.ndarray) -> np.ndarray:
        """By how much a stretch of every candidate may change what is known of its time against that of `best`.

        Args:
            best: a candidate.
            batch: rows of both.
            num_cycles: of the stretch, int64 [..., 1], positive.

        Returns:
            Standard deviations of the change of logarithms, float64 [..., C]; 0 for `best`.
        """
        places = 1 + np.arange(self._shape[0]) * self._shape[1] + self._bucket[batch]
        own = places[best]
        variances = self._covariance.diagonal()[places]
        known = np.maximum(variances + self._covariance[own, own] - 2 * self._covariance[own, places], 0.0)
        found: np.ndarray = known / np.sqrt(known + _noise(num_cycles))
        return found

    def factors(self) -> np.ndarray:
        """Relative to the pace, by candidate and number of rows, float64 [C, max_batch + 1]."""
        if self._factors is None:
            found = np.exp(self._log[1:].reshape(self._shape) + _DOUBT * self.deviations())
            self._factors = found[:, self._bucket]
        return self._factors

    def deviations(self) -> np.ndarray:
        """How uncertain times are: of their logarithms, pace included, by candidate and `bucket`; float64 [C, buckets]."""
        covariance = self._covariance
        variances = covariance[0, 0] + 2 * covariance[0, 1:] + covariance.diagonal()[1:]
        found: np.ndarray = np.sqrt(np.maximum(variances, 0.0)).reshape(self._shape)
        return found


def _noise(num_cycles: _Number) -> _Number:
    """Variance of the logarithm of the mean time of so many cycles."""
    return _CYCLE**2 / num_cycles + _STRETCH**2

"""Milliseconds of the cycles of a loop: what their runs were calibrated at, as the loop finds them now."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from nemodiff_trt.runtime.planner.latency_model import LatencyModel
from nemodiff_trt.runtime.planner.loop_times import LoopTimes
from nemodiff_trt.runtime.planner.planned_request import Choice
from nemodiff_trt.vocabulary import Role

# Cycles take longer with more tokens in the cache, slowly: times are predicted for multiples of so many tokens.
_HISTORY_STEP = 32
_MAX_TABLES = 256


class CycleCosts:
    """Of every candidate, the first of which decodes autoregressively.

    Attributes:
        candidates: C ways to decode.
        lengths: their block lengths, int64 [C].
        places: of the candidates, by block length.
        loop_times: measured over calibrated time.
    """

    __slots__ = ("_latency", "_max_batch", "_tables", "candidates", "lengths", "loop_times", "places")

    def __init__(self, latency: LatencyModel, block_lengths: Sequence[int], max_batch: int) -> None:
        """Start with calibrated times, for the rows of the largest batch."""
        self._latency, self._max_batch = latency, max_batch
        self.candidates = tuple(map(Choice, (1, *block_lengths)))
        self.lengths = np.array([choice.block_length for choice in self.candidates])
        self.places = {choice.block_length: place for place, choice in enumerate(self.candidates)}
        self.loop_times = LoopTimes(len(self.candidates), max_batch)
        self._tables: dict[int, np.ndarray] = {}

    def table(self, batch: int, history: float) -> np.ndarray:
        """Of a cycle as the loop runs now, by candidate and number of rows; float64 [C, batch + 1].

        `history` are the cached tokens of a row, on average.
        """
        found: np.ndarray = self._calibrated(history)[:, : batch + 1] * self.loop_times.factors()[:, : batch + 1]
        return found

    def calibrated_ms(self, runs: Iterable[tuple[int, int]], history: float) -> float:
        """Of runs by candidate and rows, one after another."""
        table = self._calibrated(history)
        return float(sum(table[run] for run in runs))

    def _calibrated(self, history: float) -> np.ndarray:
        """By candidate and number of rows, float64 [C, max_batch + 1]."""
        bucket = round(history / _HISTORY_STEP)
        table = self._tables.get(bucket)
        if table is None:
            if len(self._tables) == _MAX_TABLES:
                self._tables.clear()
            table = self._tables[bucket] = np.zeros((len(self.candidates), self._max_batch + 1))
            batches = np.arange(1, self._max_batch + 1)
            for row, choice in zip(table[:, 1:], self.candidates, strict=True):
                for role in (Role.DRAFT, Role.VERIFY) if choice.drafts else (Role.DECODE,):
                    row += self._latency.row(role, choice.block_length, batches, bucket * _HISTORY_STEP)
                row *= self._latency.loop_row(choice.block_length, batches)
        return table

"""Noise of the positions of an answer, kept for the runs that come back to them."""

from __future__ import annotations

import numpy as np

from nemodiff_trt.runtime.sampling.noise import gumbel_of, stream_key

# Positions that are kept: a long block, and as many again before the memory is tidied up.
_NUM_ROWS = 64


class PositionNoise:
    """Gumbel noise of all tokens at neighbouring positions. A block is drafted and verified with the same noise, and what was
    rejected is drafted again: so most of a block's noise is there already.
    """

    __slots__ = ("_begin", "_counter", "_end", "_rows", "_seed", "_stream")

    def __init__(self, counter: np.ndarray, seed: int, stream: int) -> None:
        """Allocate nothing yet; arguments as of `stream_key`, and `counters` uint64 [V] of the vocabulary."""
        self._counter, self._seed, self._stream = counter, seed, stream
        # Positions `begin` to `end` - 1 lie in the first rows.
        self._begin = self._end = 0
        self._rows = np.empty((0, len(counter)))

    def at(self, position: int, count: int) -> np.ndarray:
        """Noise of `count` positions from `position` on: float64 [count, V], a view that is valid until the next call."""
        if len(self._rows) < count:
            self._rows = np.empty((max(_NUM_ROWS, 2 * count), len(self._counter)))
            self._end = self._begin
        if not self._begin <= position <= self._end:
            self._begin = self._end = position
        if position + count > self._begin + len(self._rows):
            kept = self._rows[position - self._begin : self._end - self._begin]
            self._rows[: len(kept)] = kept
            self._begin = position
        while self._end < position + count:
            key = stream_key(self._seed, self._end, self._stream)
            self._rows[self._end - self._begin] = gumbel_of(self._counter, key)
            self._end += 1
        first = position - self._begin
        return self._rows[first : first + count]

"""The linear key/value cache of a batch, and views of neighbouring rows of it."""

from __future__ import annotations

from typing import Any, Generic, Self, TypeVar

import numpy as np

Buffer = TypeVar("Buffer")


class KVCache(Generic[Buffer]):
    """Keys and values of B sequences, one pair of buffers [B,G,K,D] per layer, in whatever form a session needs.

    `length` int64 [B] is the number of valid slots of every row and so the index of the next write. Whoever decodes sets it,
    in place; a session only reads it. Rejected tokens are dropped by setting it back: nothing beyond it is ever read.
    """

    __slots__ = ("_views", "capacity", "first_row", "keys", "length", "values")

    def __init__(self, keys: list[Buffer], values: list[Buffer], length: np.ndarray, capacity: int) -> None:
        self.keys = keys
        self.values = values
        self.length = length
        self.capacity = capacity
        # Of the cache this is a view of.
        self.first_row = 0
        self._views: dict[tuple[int, int], Self] = {}

    @property
    def batch_size(self) -> int:
        return int(self.length.shape[0])

    def move(self, row: int, source: int, target: int) -> None:
        """Copy the keys and values of slot `source` of a row to slot `target`, in all layers.

        For a token that was computed for the position of `target` but written elsewhere in its step.
        """
        for buffer in (*self.keys, *self.values):
            cache: Any = buffer
            cache[row, :, target] = cache[row, :, source]

    def clear(self) -> None:
        """Forget all rows; buffers keep their content, which is never read again."""
        self.length[:] = 0

    def rows(self, begin: int, end: int) -> Self:
        """Rows `begin` to `end` - 1 as a cache of their own, over the same memory: steps on either are seen by both."""
        if (begin, end) == (0, self.batch_size):
            return self
        view = self._views.get((begin, end))
        if view is None:
            keys, values = ([_rows_of(buffer, begin, end) for buffer in buffers] for buffers in (self.keys, self.values))
            view = self._views[begin, end] = self._over(keys, values, self.length[begin:end])
            view.first_row = self.first_row + begin
        return view

    def copy_row(self, source: int, target: int, begin: int, end: int) -> None:
        """Copy slots `begin` to `end` - 1 of row `source` to the same slots of row `target`. Lengths stay as they are."""
        for buffer in (*self.keys, *self.values):
            rows: Any = buffer
            rows[target, :, begin:end] = rows[source, :, begin:end]

    def _over(self, keys: list[Buffer], values: list[Buffer], length: np.ndarray) -> Self:
        """A view; a subclass gives it what its session needs."""
        return type(self)(keys, values, length, self.capacity)


def _rows_of(buffer: Any, begin: int, end: int) -> Any:
    return buffer[begin:end]

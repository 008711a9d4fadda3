"""The linear key/value cache of one batch."""

from __future__ import annotations

from typing import Any, Generic, TypeVar

import numpy as np

Buffer = TypeVar("Buffer")


class KVCache(Generic[Buffer]):
    """Keys and values of B sequences, one pair of buffers [B,G,K,D] per layer, in whatever form a session needs.

    `length` int64 [B] is the number of valid slots of every row and so the index of the next write. Whoever decodes sets it,
    in place; a session only reads it. Rejected tokens are dropped by setting it back: nothing beyond it is ever read.
    """

    __slots__ = ("capacity", "keys", "length", "values")

    def __init__(self, keys: list[Buffer], values: list[Buffer], batch_size: int, capacity: int) -> None:
        self.keys = keys
        self.values = values
        self.length = np.zeros(batch_size, np.int64)
        self.capacity = capacity

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

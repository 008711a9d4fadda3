"""One piece of memory for arrays of any shape that are never needed at the same time."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import DTypeLike


class ScratchArray:
    """Hands out contiguous arrays over the same memory: writing to one changes all.

    When it has to grow it at least doubles. Arrays handed out before keep what they lie in, which is no more than the newest.
    """

    __slots__ = ("_memory",)

    def __init__(self, dtype: DTypeLike) -> None:
        self._memory = np.zeros(0, dtype)

    def array(self, shape: tuple[int, ...]) -> np.ndarray:
        """An array of `shape`; its content is what was written there last."""
        size = math.prod(shape)
        if size > self._memory.size:
            # Pages of zeros cost nothing before they are written to.
            self._memory = np.zeros(max(size, 2 * self._memory.size), self._memory.dtype)
        return self._memory[:size].reshape(shape)

"""What sampling costs the host, learned from the requests that sample: engines do not know it, and longer blocks draw more."""

from __future__ import annotations

import time
from collections.abc import Callable

# Share of the newest measurement.
_NEWEST = 0.1


class DrawCost:
    """Milliseconds of one drawn token."""

    __slots__ = ("clock", "ms")

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        """`clock` is in seconds."""
        self.clock = clock
        self.ms = 0.0

    def observe(self, num_tokens: int, seconds: float) -> None:
        """Take in that so many tokens were drawn in that time; at least one."""
        ms = 1e3 * seconds / num_tokens
        self.ms = ms if self.ms == 0.0 else (1 - _NEWEST) * self.ms + _NEWEST * ms

"""How long the cycles of a loop take, told to the times of the loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from nemodiff_trt.runtime.planner.cycle_costs import CycleCosts

# A cycle counts for no more than so many times the middle one of its stretch: what something interrupted takes many times as
# long, and one in ten may be.
_LONGEST = 1.5


class CycleWatch:
    """Times cycles that are alike as one stretch: single ones differ by a quarter on a shared machine."""

    __slots__ = ("_begin_s", "_clock", "_costs", "_history", "_runs", "_seconds")

    def __init__(self, costs: CycleCosts, clock: Callable[[], float]) -> None:
        """Start without a stretch; `clock` is in seconds."""
        self._costs, self._clock = costs, clock
        self._runs: Sequence[tuple[int, int]] = ()
        # Cached tokens of a row, the mean, when the stretch began.
        self._history = 0.0
        # Of every cycle of the stretch; and when the one under way began, if it counts.
        self._seconds: list[float] = []
        self._begin_s: float | None = None

    def open(self, runs: Sequence[tuple[int, int]], history: float) -> None:
        """Start a stretch of cycles with these runs, each of them by candidate and rows."""
        self._runs, self._history = runs, history
        self._begin_s = None
        self._seconds.clear()

    def begin_cycle(self) -> None:
        self._begin_s = self._clock()

    def end_cycle(self) -> None:
        """Count the cycle, if its begin was told."""
        if self._begin_s is not None:
            self._seconds.append(self._clock() - self._begin_s)
            self._begin_s = None

    def close(self, history: float | None) -> None:
        """Take in what the stretch tells; `history` at its end, None where the rows are others by now."""
        num_cycles = len(self._seconds)
        if not num_cycles:
            return
        longest = _LONGEST * sorted(self._seconds)[num_cycles // 2]
        seconds = sum(min(own, longest) for own in self._seconds)
        if seconds <= 0:
            return
        middle = self._history if history is None else (self._history + history) / 2
        ratio = 1e3 * seconds / (num_cycles * self._costs.calibrated_ms(self._runs, middle))
        for place, num_rows in self._runs:
            self._costs.loop_times.observe(place, num_rows, ratio, num_cycles)

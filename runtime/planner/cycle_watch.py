"""How long the cycles of a loop take, told to the times of the loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from nemodiff_trt.runtime.planner.cycle_costs import CycleCosts


class CycleWatch:
    """Times cycles that are alike as one stretch: single ones differ by a quarter on a shared machine."""

    __slots__ = ("_begin_s", "_clock", "_costs", "_history", "_num_cycles", "_runs", "_seconds")

    def __init__(self, costs: CycleCosts, clock: Callable[[], float]) -> None:
        """Start without a stretch; `clock` is in seconds."""
        self._costs, self._clock = costs, clock
        self._runs: Sequence[tuple[int, int]] = ()
        # Cached tokens of a row, the mean, when the stretch began.
        self._history = 0.0
        # Of the stretch, and of the cycle under way if it counts.
        self._num_cycles, self._seconds = 0, 0.0
        self._begin_s: float | None = None

    def open(self, runs: Sequence[tuple[int, int]], history: float) -> None:
        """Start a stretch of cycles with these runs, each of them by candidate and rows."""
        self._runs, self._history = runs, history
        self._num_cycles, self._seconds = 0, 0.0

    def begin_cycle(self) -> None:
        self._begin_s = self._clock()

    def end_cycle(self) -> None:
        """Count the cycle, if its begin was told."""
        if self._begin_s is not None:
            self._seconds += self._clock() - self._begin_s
            self._num_cycles += 1
            self._begin_s = None

    def close(self, history: float | None) -> None:
        """Take in what the stretch tells; `history` at its end, None where the rows are others by now."""
        self._begin_s = None
        if not self._num_cycles or self._seconds <= 0:
            return
        middle = self._history if history is None else (self._history + history) / 2
        ratio = 1e3 * self._seconds / (self._num_cycles * self._costs.calibrated_ms(self._runs, middle))
        for place, num_rows in self._runs:
            self._costs.loop_times.observe(place, num_rows, ratio, self._num_cycles)
        self._num_cycles = 0

"""How long the cycles of a loop take, told to the times of the loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from nemodiff_trt.runtime.planner.cycle_costs import CycleCosts

# A cycle counts for no more than so many times the middle one of its stretch: what something interrupted takes many times as
# long, and one in ten may be.
_LONGEST = 1.5
# Cycles of a stretch, at most: the pace of a machine changes within a second.
_STRETCH_CYCLES = 16


class CycleWatch:
    """Times cycles that are alike as one stretch: single ones differ by a quarter on a shared machine, and to take in what they
    show costs as much as some percent of a short one. Cycles with a few rows more or less are alike, each against its own
    calibrated time.
    """

    __slots__ = ("_begin_s", "_clock", "_costs", "_end_s", "_kind", "_per_s", "_ratios", "_runs", "_taken_s")

    def __init__(self, costs: CycleCosts, clock: Callable[[], float]) -> None:
        """Start without a stretch; `clock` is in seconds."""
        self._costs, self._clock = costs, clock
        self._runs: Sequence[tuple[int, int]] = ()
        # Candidates and about how many rows each has; and what a second is of the calibrated time of such a cycle.
        self._kind: list[tuple[int, int]] = []
        self._per_s = 0.0
        # Measured over calibrated time of every cycle of the stretch; and when the one under way began, if it counts.
        self._ratios: list[float] = []
        self._begin_s: float | None = None
        # When the last cycle of all ended that counted, and of those that were taken in.
        self._end_s = self._taken_s = clock()

    def follow(self, runs: Sequence[tuple[int, int]], history: float) -> None:
        """Begin a cycle with these runs. The first of its kind does not count: it finds caches that others left.

        Args:
            runs: of the cycle, each by candidate and rows.
            history: cached tokens of a row, the mean.
        """
        kind = [(place, self._costs.loop_times.bucket(num_rows)) for place, num_rows in runs]
        is_like_the_last = kind == self._kind
        if not is_like_the_last or len(self._ratios) >= _STRETCH_CYCLES:
            self.take_in()
        self._kind, self._runs, self._begin_s = kind, runs, None
        self._per_s = 1e3 / self._costs.calibrated_ms(runs, history)
        if is_like_the_last:
            self.begin_cycle()

    def begin_cycle(self) -> None:
        self._begin_s = self._clock()

    def end_cycle(self) -> None:
        """Count the cycle, if its begin was told."""
        if self._begin_s is not None:
            self._end_s = self._clock()
            self._ratios.append((self._end_s - self._begin_s) * self._per_s)
            self._begin_s = None

    def take_in(self) -> None:
        """Tell what the stretch shows until here, and start another."""
        num_cycles = len(self._ratios)
        if not num_cycles:
            return
        longest = _LONGEST * sorted(self._ratios)[num_cycles // 2]
        ratio = sum(min(own, longest) for own in self._ratios) / num_cycles
        self._ratios.clear()
        # A clock that stands still tells nothing.
        if ratio > 0:
            elapsed_ms = 1e3 * (self._end_s - self._taken_s)
            for place, num_rows in self._runs:
                self._costs.loop_times.observe(place, num_rows, ratio, num_cycles, elapsed_ms)
                elapsed_ms = 0.0
            self._taken_s = self._end_s

"""How fast a shared machine is at the moment, told by steps that are timed in pauses, and a clock that allows for it."""

from __future__ import annotations

import statistics
import time
from bisect import insort
from collections.abc import Callable
from typing import Any

import numpy as np

from nemodiff_trt.runtime.planner import LatencyModel, Step, StepTime
from nemodiff_trt.runtime.planner.calibrate import StepTimer
from nemodiff_trt.runtime.session import Session, StepOutput
from nemodiff_trt.vocabulary import Role

# What is timed runs for so long between two pauses. A step behind other work is slower, so they do not follow every one.
BUSY_S = 0.1
# Of what the pauses before told, in what is told of the present: one has time for a few steps of every role.
_KEPT = 0.3


class MachinePace:
    """Times steps in pauses, `share` seconds of them for one between; never the steps of what runs between."""

    def __init__(self, session: Session, share: float, num_rounds: int, clock: Callable[[], float] = time.perf_counter) -> None:
        """Time every step for `num_rounds` rounds first, from which follows what is usual. `clock` is in seconds."""
        self._timer, self._share, self._clock = StepTimer(session, clock), share, clock
        self._due: list[int] = []
        self._ahead_s = 0.0
        self._usual: dict[Step, list[float]] = {}
        # Milliseconds that steps of late took, and usually take.
        self._took = dict.fromkeys(session.roles, 0.0)
        self._expected = dict.fromkeys(session.roles, 0.0)
        while self._timer.num_rounds < num_rounds or self._due:
            self._time_one()

    def of(self, role: Role | None = None) -> float:
        """How much longer a step of `role`, or of any, takes at the moment than usual."""
        if role is not None:
            return self._took[role] / self._expected[role]
        return sum(self._took.values()) / sum(self._expected.values())

    def pause(self, busy_s: float) -> None:
        """Time steps, after `busy_s` seconds of what runs between."""
        for of_late in (self._took, self._expected):
            for role in of_late:
                of_late[role] *= _KEPT
        self._ahead_s -= self._share * busy_s
        while self._ahead_s < 0:
            begin = self._clock()
            self._time_one()
            self._ahead_s += self._clock() - begin

    def latency(self) -> LatencyModel:
        """Of steps at the usual pace: the median of all that was timed so far."""
        return LatencyModel.calibrate("this CPU", [StepTime(step, statistics.median(own)) for step, own in self._usual.items()])

    def _time_one(self) -> None:
        self._due = self._due or self._timer.next_round()
        for timed in self._timer.time(self._due.pop()):
            own = self._usual.setdefault(timed.step, [])
            insort(own, timed.ms)
            self._took[timed.step.role] += timed.ms
            self._expected[timed.step.role] += statistics.median(own)


class PacedClock:
    """Seconds that what runs would take at the usual pace of the machine."""

    def __init__(self, pace: MachinePace, clock: Callable[[], float] = time.perf_counter) -> None:
        self._pace, self._clock = pace, clock
        self._role: Role | None = None
        self._last, self._busy_s, self._now_s = clock(), 0.0, 0.0

    def __call__(self) -> float:
        last, self._last = self._last, self._clock()
        took_s = self._last - last
        self._busy_s += took_s
        self._now_s += took_s / self._pace.of(self._role)
        return self._now_s

    def is_running(self, role: Role | None) -> None:
        """From now on a step of `role` runs, or none."""
        self()
        self._role = role

    def advance_to(self, now_s: float) -> None:
        """Nothing runs until then."""
        self()
        self._now_s = max(self._now_s, now_s)

    def pause(self) -> None:
        """Stand still and take the pace, if it is time to."""
        self()
        if self._busy_s >= BUSY_S:
            self._pace.pause(self._busy_s)
            self._busy_s = 0.0
            self._last = self._clock()


class PacedSession:
    """A session that tells a clock what it runs."""

    def __init__(self, session: Session, clock: PacedClock) -> None:
        self._session, self._clock = session, clock

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def run(self, role: Role, input_ids: np.ndarray, cache: Any, *arguments: Any) -> StepOutput:
        """Arguments and output as of `Session.run`."""
        self._clock.is_running(role)
        output = self._session.run(role, input_ids, cache, *arguments)
        self._clock.is_running(None)
        return output

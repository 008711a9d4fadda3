"""The clock of the simulator benchmark: it goes by what steps usually take, and stands still in pauses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from nemodiff_trt.runtime.planner import Step
from nemodiff_trt.vocabulary import Role
from support.slowing_session import SlowingSession, usual_s

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture(autouse=True)
def _benchmarks_on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def test_steps_take_as_long_on_the_clock_while_the_machine_is_slow() -> None:
    from machine_pace import MachinePace, PacedClock, PacedSession

    slow_from_s = float("inf")
    session = SlowingSession(lambda now_s: 1.5 if now_s >= slow_from_s else 1.0)
    pace = MachinePace(session, share=2.0, num_rounds=12, clock=session.clock)
    clock = PacedClock(pace, session.clock)
    paced = PacedSession(session, clock)
    cache = paced.create_cache(4)
    cache.length[:] = 30
    ids = np.zeros((4, 1), np.int64)
    step_s = usual_s(Step.of_run(Role.DECODE, ids, cache.length))

    def seconds(count: int) -> tuple[float, float]:
        """Of that many steps with pauses between: on the paced clock, and on the session's own without pauses."""
        begin_s, busy_s = clock(), 0.0
        for _ in range(count):
            before_s = session.now_s
            paced.run(Role.DECODE, ids, cache)
            busy_s += session.now_s - before_s
            clock.pause()
        return clock() - begin_s, busy_s

    assert seconds(1000) == pytest.approx((1000 * step_s, 1000 * step_s))
    slow_from_s = session.now_s
    usual, busy = seconds(1000)
    assert busy == pytest.approx(1500 * step_s)
    # Nothing tells of the slow phase before the first pause in it, which comes after a tenth of a second.
    assert 1000 * step_s < usual < 1000 * step_s + 0.1
    assert seconds(1000) == pytest.approx((1000 * step_s, 1500 * step_s), rel=1e-3)


def test_the_clock_goes_on_while_nothing_runs() -> None:
    from machine_pace import MachinePace, PacedClock

    session = SlowingSession(lambda _: 1.0)
    clock = PacedClock(MachinePace(session, share=2.0, num_rounds=1, clock=session.clock), session.clock)
    clock.advance_to(5.0)
    clock.advance_to(4.0)
    assert clock() == 5.0

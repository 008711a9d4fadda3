"""Step times as a loop would see them, on a machine that is not always as fast."""

from __future__ import annotations

import numpy as np
import pytest

from nemodiff_trt.runtime.planner.calibrate import measure_steps
from support.slowing_session import SlowingSession, usual_s


def test_slow_phases_of_a_machine_fall_on_all_steps_alike() -> None:
    session = SlowingSession(lambda now_s: 1.5 if now_s % 2 < 1 else 1.0)
    times = measure_steps(session, clock=session.clock)
    ratios = np.array([time.ms / 1e3 / usual_s(time.step) for time in times])
    # Some turns lie where a second ends.
    assert ratios.max() / ratios.min() < 1.08
    assert ratios.mean() == pytest.approx(1.2, abs=0.05)

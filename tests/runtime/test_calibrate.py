"""Step times as a loop would see them, on a machine that is not always as fast."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from nemodiff_trt.runtime.planner.calibrate import measure_steps
from nemodiff_trt.runtime.planner.other_work import CpuTimes, share_of_others
from support.slowing_session import SlowingSession, usual_s


def test_slow_phases_of_a_machine_fall_on_all_steps_alike() -> None:
    session = SlowingSession(lambda now_s: 1.5 if now_s % 2 < 1 else 1.0)
    times = measure_steps(session, clock=session.clock)
    ratios = np.array([time.ms / 1e3 / usual_s(time.step) for time in times])
    # Some turns lie where a second ends.
    assert ratios.max() / ratios.min() < 1.08
    assert ratios.mean() == pytest.approx(1.2, abs=0.05)


class TestOtherWork:
    def test_what_another_process_takes(self) -> None:
        begin = CpuTimes.now()
        with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as other:
            time.sleep(1)
            other.kill()
        found = share_of_others(begin, CpuTimes.now())
        # Beside work of others still it gets less than a CPU, and they take the rest.
        assert found is not None
        assert 0.5 / len(os.sched_getaffinity(0)) < found <= 1

    def test_own_work_and_idle_cpus_are_not_counted(self, tmp_path: Path) -> None:
        cpu, other = min(os.sched_getaffinity(0)), max(os.sched_getaffinity(0)) + 1
        ticks = os.sysconf("SC_CLK_TCK")

        def at(name: str, user_s: int, idle_s: int, own_s: float) -> CpuTimes:
            stat = tmp_path / name
            counts = f"{user_s * ticks} 0 0 {idle_s * ticks} 0 0 0 0 7 7"
            stat.write_text(f"cpu 1 2 3 4 5 6 7 8 9 10\ncpu{cpu} {counts}\ncpu{other} 9{counts}\nintr 1\n", encoding="ascii")
            found = CpuTimes.now(stat)
            assert found is not None
            return CpuTimes(found.busy_s, own_s, found.all_s)

        begin = at("begin", 10, 10, 5.0)
        assert share_of_others(begin, at("end", 16, 14, 9.0)) == pytest.approx(0.2)
        assert share_of_others(begin, begin) is None

    def test_a_system_that_does_not_tell(self, tmp_path: Path) -> None:
        assert CpuTimes.now(tmp_path / "none") is None
        assert share_of_others(None, CpuTimes.now()) is None

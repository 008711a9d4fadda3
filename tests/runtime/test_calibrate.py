"""Step times as a loop would see them, on machines that are not always as fast."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from nemodiff_trt.contract import Limits
from nemodiff_trt.runtime.planner import Step
from nemodiff_trt.runtime.planner.calibrate import measure_steps
from nemodiff_trt.runtime.session_eager import EagerSession
from nemodiff_trt.vocabulary import Role
from support.checkpoints import random_decoder, tiny_config


def usual_s(step: Step) -> float:
    return 1e-3 * (1 + 0.05 * step.batch * step.step + 0.001 * step.batch * step.history)


class SlowAtTimes(EagerSession):
    """Its clock advances by what runs take: `usual_s`, and half as long again in every other second."""

    now_s = 0.0

    def run(self, role: Role, input_ids: np.ndarray, cache: Any, *_: Any) -> Any:
        self.now_s += usual_s(Step.of_run(role, input_ids, cache.length)) * (1.5 if self.now_s % 2 < 1 else 1.0)


def test_slow_phases_of_a_machine_fall_on_all_steps_alike() -> None:
    limits = Limits(max_batch_size=8, max_seq_len=64, block_length=16, prefill_chunk=16)
    session = SlowAtTimes(random_decoder(tiny_config(hidden_size=16, head_dim=8), limits.cache_capacity), limits)
    times = measure_steps(session, clock=lambda: session.now_s)
    ratios = np.array([time.ms / 1e3 / usual_s(time.step) for time in times])
    # Some turns lie where a second ends.
    assert ratios.max() / ratios.min() < 1.08
    assert ratios.mean() == pytest.approx(1.2, abs=0.05)

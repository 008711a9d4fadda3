"""A session on a clock of its own, as on a machine that is not always as fast. It decides nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from nemodiff_trt.contract import Limits
from nemodiff_trt.runtime.planner import Step
from nemodiff_trt.runtime.session import StepOutput
from nemodiff_trt.runtime.session_eager import EagerSession
from nemodiff_trt.vocabulary import Role
from support.checkpoints import random_decoder, tiny_config


def usual_s(step: Step) -> float:
    return 1e-3 * (1 + 0.05 * step.batch * step.step + 0.001 * step.batch * step.history)


class SlowingSession(EagerSession):
    """Runs take `usual_s`, times what `slowed` says at the time."""

    def __init__(self, slowed: Callable[[float], float]) -> None:
        limits = Limits(max_batch_size=8, max_seq_len=64, block_length=16, prefill_chunk=16)
        super().__init__(random_decoder(tiny_config(hidden_size=16, head_dim=8), limits.cache_capacity), limits)
        self.now_s = 0.0
        self._slowed = slowed

    def clock(self) -> float:
        return self.now_s

    def run(self, role: Role, input_ids: np.ndarray, cache: Any, *_: Any) -> StepOutput:
        self.now_s += usual_s(Step.of_run(role, input_ids, cache.length)) * self._slowed(self.now_s)
        return StepOutput(input_ids, np.ones(input_ids.shape, np.float32))

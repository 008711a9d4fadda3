"""A scripted session that a test can hold back or break."""

from __future__ import annotations

import threading
from typing import Any

from nemodiff_trt.contract import Limits
from nemodiff_trt.runtime.session import StepOutput
from support.scripted_session import ScriptedSession, counting, guess_from


class GatedSession(ScriptedSession):
    """Counts tokens from 110 on; runs only while the gate is open, and breaks when told to."""

    def __init__(self, limits: Limits, keeps_logits: bool = False) -> None:
        super().__init__(counting(110), guess_from(counting(110), 1, 0.8), limits)
        self.keeps_logits = keeps_logits
        self.gate = threading.Event()
        self.gate.set()
        self.is_broken = False
        self._runs_left: int | None = None

    def close_gate_after(self, num_runs: int) -> None:
        """Let so many more runs through."""
        self._runs_left = num_runs

    def open_gate(self) -> None:
        self._runs_left = None
        self.gate.set()

    def run(self, *arguments: Any, **more: Any) -> StepOutput:
        if self._runs_left is not None:
            self._runs_left -= 1
            if self._runs_left < 0:
                self.gate.clear()
        assert self.gate.wait(timeout=10)
        if self.is_broken:
            raise RuntimeError("the device is gone")
        return super().run(*arguments, **more)

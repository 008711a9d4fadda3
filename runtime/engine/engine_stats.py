"""What an engine loop has done so far, for metrics."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from nemodiff_trt.runtime.events import RowStep
from nemodiff_trt.runtime.sequence import FinishReason
from nemodiff_trt.vocabulary import Role

_COUNTERS = ("request_runs", "finished", "accepted")


@dataclass(slots=True)
class EngineStats:
    """Totals since the start.

    Attributes:
        steps: steps of the loop, and `step_s` the seconds they took.
        tokens: emitted to any request.
        request_runs: engine runs by role, one for every request that took part.
        finished: requests by reason.
        accepted: verify runs of speculating requests by how many drafts were accepted.
    """

    steps: int = 0
    step_s: float = 0.0
    tokens: int = 0
    request_runs: Counter[str] = field(default_factory=Counter)
    finished: Counter[str] = field(default_factory=Counter)
    accepted: Counter[int] = field(default_factory=Counter)

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        counters = {name: {str(key): count for key, count in sorted(getattr(self, name).items())} for name in _COUNTERS}
        return {"steps": self.steps, "step_s": self.step_s, "tokens": self.tokens, **counters}

    def add_step(self, seconds: float) -> None:
        self.steps += 1
        self.step_s += seconds

    def add_run(self, role: Role, report: RowStep) -> None:
        self.tokens += len(report.emitted)
        self.request_runs[role] += 1
        if report.drafted and role is not Role.DRAFT:
            self.accepted[report.accepted] += 1

    def add_result(self, reason: FinishReason) -> None:
        self.finished[reason] += 1

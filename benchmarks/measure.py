"""Times that can be compared, and what was promised of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from nemodiff_trt.runtime.bench.measure import hardware, interleaved, median_ms, median_ratio, versions

__all__ = ["Target", "hardware", "interleaved", "median_ms", "median_ratio", "versions"]


@dataclass(frozen=True)
class Target:
    """A promise, the value measured for it, and whether it was kept."""

    value: float
    at_least: float | None = None
    at_most: float | None = None

    @property
    def is_met(self) -> bool:
        return (self.at_least is None or self.value >= self.at_least) and (self.at_most is None or self.value <= self.at_most)

    def to_dict(self) -> dict[str, Any]:
        bounds = {"at_least": self.at_least, "at_most": self.at_most}
        return {"value": self.value, **{name: bound for name, bound in bounds.items() if bound is not None}, "met": self.is_met}

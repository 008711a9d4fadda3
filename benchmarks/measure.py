"""Times that can be compared, and what was promised of them."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemodiff_trt.runtime.bench.measure import hardware, interleaved, median_ms, median_ratio, versions

__all__ = ["Target", "commit", "hardware", "interleaved", "median_ms", "median_ratio", "versions"]


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


def commit(folder: Path) -> str | None:
    """Of a checkout that holds `folder`, marked when files differ from it; None where there is none."""
    git = shutil.which("git")
    if git is None:
        return None
    command = [git, "-C", str(folder), "describe", "--always", "--abbrev=12", "--exclude=*", "--dirty=, with local changes"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    return found.stdout.strip() if found.returncode == 0 else None

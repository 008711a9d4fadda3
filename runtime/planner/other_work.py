"""How much of the CPUs other work takes while times are measured, which would hold it."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

_STAT = Path("/proc/stat")
# proc(5): user, nice, system, idle, iowait, irq, softirq, steal; what follows is part of these.
_FIELDS, _IDLE = 8, (3, 4)


@dataclass(frozen=True, slots=True)
class CpuTimes:
    """Seconds of CPU time up to a moment.

    Attributes:
        busy_s: of all processes, on the CPUs that this one may run on.
        own_s: of this process.
        all_s: that these CPUs had.
    """

    busy_s: float
    own_s: float
    all_s: float

    @classmethod
    def now(cls, stat: Path = _STAT) -> CpuTimes | None:
        """Up to now; None where the system does not tell."""
        try:
            lines = stat.read_text(encoding="ascii").splitlines()
        except OSError:
            return None
        names = {f"cpu{cpu}" for cpu in os.sched_getaffinity(0)}
        fields = [line.split() for line in lines if line.split(maxsplit=1)[0] in names]
        ticks = [[int(count) for count in own[1 : 1 + _FIELDS]] for own in fields]
        total, idle = sum(map(sum, ticks)), sum(own[place] for own in ticks for place in _IDLE)
        second = os.sysconf("SC_CLK_TCK")
        return cls((total - idle) / second, time.process_time(), total / second)


def share_of_others(begin: CpuTimes | None, end: CpuTimes | None) -> float | None:
    """Of the CPU time between two moments, what processes other than this one took, from 0 to 1; None if it is unknown."""
    if begin is None or end is None or end.all_s <= begin.all_s:
        return None
    others_s = (end.busy_s - begin.busy_s) - (end.own_s - begin.own_s)
    return min(max(others_s / (end.all_s - begin.all_s), 0.0), 1.0)

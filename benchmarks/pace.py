"""Times of long jobs that are compared: all run at once, a slice each in turn."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping

# Some steps of a small model, so that the first, which finds the caches as another job left them, counts for little; and short
# against the slow phases of a shared machine.
SLICE_S = 0.02


def at_one_pace(
    jobs: Mapping[str, Iterator[object]],
    expected_s: Mapping[str, float],
    clock: Callable[[], float] = time.perf_counter,
    slice_s: float = SLICE_S,
) -> dict[str, float]:
    """Seconds of every job. The next slice is that of the job that has the smallest part of its expected time behind it.

    So at any moment all jobs have done about the same part of their work, and a slow phase of the machine, however short or
    long, takes the same part of every one. Whole jobs in turn have phases of their own, which last many of them to average.

    Args:
        jobs: do a step of work whenever they are advanced.
        expected_s: about how long each takes, from a run before.
        clock: in seconds.
        slice_s: of one job, at least; a step is not interrupted.
    """
    running, seconds = dict(jobs), dict.fromkeys(jobs, 0.0)
    while running:
        name = min(running, key=lambda name: seconds[name] / expected_s[name])
        begin = now = clock()
        while now - begin < slice_s:
            try:
                next(running[name])
            except StopIteration:
                del running[name]
                break
            finally:
                now = clock()
        seconds[name] += now - begin
    return seconds

"""Measure the steps of a session, for the latency model of its device."""

from __future__ import annotations

import itertools
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator

import numpy as np

from nemodiff_trt.runtime.planner.latency_model import LatencyModel, Step, StepTime
from nemodiff_trt.runtime.session import Session
from nemodiff_trt.vocabulary import Role, Target

# Roles that a choice is made between, and prefill, which a simulation needs as well.
_ROLES = (Role.DECODE, Role.DRAFT, Role.VERIFY, Role.PREFILL)


def steps_to_measure(session: Session) -> Iterator[Step]:
    """Powers of two of rows and step tokens up to what was built, with short and long histories."""
    limits = session.limits
    histories = sorted({max(1, limits.max_seq_len // part) for part in (16, 8, 4, 2)})
    for role in _ROLES:
        if role in session.roles:
            longest = limits.longest_step(role)
            steps = _powers(4, longest) if longest > 1 else [1]
            for batch, step, history in itertools.product(_powers(1, limits.max_batch_size), steps, histories):
                # A chunk of prefill may be as long as the cache.
                if history + step <= limits.cache_capacity:
                    yield Step(role, batch, step, float(history))


def measure_steps(session: Session, num_repeats: int = 5, clock: Callable[[], float] = time.perf_counter) -> list[StepTime]:
    """Median time of every step of `steps_to_measure`, which take turns, so that a slow phase of the machine hits all.

    `clock` is in seconds.
    """
    cache = session.create_cache(session.limits.max_batch_size)
    generator = np.random.default_rng(0)
    steps = list(steps_to_measure(session))
    times: dict[Step, list[float]] = {step: [] for step in steps}
    for repeat in range(1 + num_repeats):
        for step in steps:
            ids = generator.integers(0, session.model.vocab_size, (step.batch, step.step))
            rows = cache.rows(0, step.batch)
            rows.length[:] = int(step.history)
            last_index = np.full(step.batch, step.step - 1) if step.role is Role.PREFILL else None
            begin = clock()
            session.run(step.role, ids, rows, last_index)
            # The first round allocates, binds and warms up.
            if repeat:
                times[step].append((clock() - begin) * 1e3)
    return [StepTime(step, statistics.median(measured)) for step, measured in times.items()]


def device_name(target: Target) -> str:
    """What was measured, in words."""
    if target.is_for_gpu:
        import torch

        return str(torch.cuda.get_device_name())
    return f"{platform.machine()} CPU, {len(os.sched_getaffinity(0))} cores"


def held_out_error(device: str, times: list[StepTime]) -> float:
    """Median relative error of steps the model was not fitted to: every third one."""
    left_out = times[1::3]
    model = LatencyModel.fit(device, [time for time in times if time not in left_out])
    return statistics.median(abs(model.ms(time.step) / time.ms - 1) for time in left_out)


def _powers(first: int, last: int) -> list[int]:
    """Powers of two from `first` on, and `last`."""
    powers = [1 << exponent for exponent in range(last.bit_length()) if first <= 1 << exponent <= last]
    return sorted({*powers, last})

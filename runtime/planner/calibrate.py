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

# Rounds, of two runs of every step each.
NUM_REPEATS = 4


def steps_to_measure(session: Session) -> Iterator[Step]:
    """Powers of two of rows and step tokens up to what was built, with short and long histories."""
    limits = session.limits
    histories = sorted({max(1, limits.max_seq_len * share // 16) for share in (1, 2, 4, 8, 12)})
    for role in _ROLES:
        if role in session.roles:
            longest = limits.longest_step(role)
            steps = _powers(4, longest) if longest > 1 else [1]
            for batch, step, history in itertools.product(_powers(1, limits.max_batch_size), steps, histories):
                # A chunk of prefill may be as long as the cache.
                if history + step <= limits.cache_capacity:
                    yield Step(role, batch, step, float(history))


def measure_steps(
    session: Session, num_repeats: int = NUM_REPEATS, clock: Callable[[], float] = time.perf_counter
) -> list[StepTime]:
    """Mean time of every step of `steps_to_measure`, which take turns, so that a slow phase of the machine hits all.

    It is the mean, slow runs included, because that is what the runs of a loop add up to. The order is random, and every step
    runs twice in a row, because a step runs faster after one like it: in a loop some do and some do not. `clock` is in seconds.
    """
    cache = session.create_cache(session.limits.max_batch_size)
    generator = np.random.default_rng(0)
    steps = list(steps_to_measure(session))
    seconds: dict[Step, list[float]] = {step: [] for step in steps}
    for repeat in range(1 + num_repeats):
        for step in generator.permutation(np.array(steps, object)):
            ids = generator.integers(0, session.model.vocab_size, (step.batch, step.step))
            rows = cache.rows(0, step.batch)
            rows.length[:] = _histories(step, session.limits.cache_capacity)
            last_index = np.full(step.batch, step.step - 1) if step.role is Role.PREFILL else None
            for _ in range(2):
                begin = clock()
                session.run(step.role, ids, rows, last_index)
                seconds[step].append(clock() - begin)
        if not repeat:
            # The first round allocates, binds and warms up.
            seconds = {step: [] for step in steps}
    return [StepTime(step, statistics.fmean(measured) * 1e3) for step, measured in seconds.items()]


def device_name(target: Target) -> str:
    """What was measured, in words."""
    if target.is_for_gpu:
        import torch

        return str(torch.cuda.get_device_name())
    return f"{platform.machine()} CPU, {len(os.sched_getaffinity(0))} cores"


def held_out_error(device: str, times: list[StepTime]) -> float:
    """Median relative error of steps the model was not fitted to: every third one."""
    left_out = times[1::3]
    model = LatencyModel.calibrate(device, [time for time in times if time not in left_out])
    return statistics.median(abs(model.ms(time.step) / time.ms - 1) for time in left_out)


def _histories(step: Step, cache_capacity: int) -> np.ndarray:
    """Cached tokens of every row, int64 [B]: half to one and a half times the mean, as requests of a loop differ.

    Engines whose rows wait for the longest one take the longer the more they differ.
    """
    spread = np.linspace(0.5, 1.5, step.batch) if step.batch > 1 else np.ones(1)
    return np.minimum(spread * step.history, cache_capacity - step.step).astype(np.int64)


def _powers(first: int, last: int) -> list[int]:
    """Powers of two from `first` on, and `last`."""
    powers = [1 << exponent for exponent in range(last.bit_length()) if first <= 1 << exponent <= last]
    return sorted({*powers, last})

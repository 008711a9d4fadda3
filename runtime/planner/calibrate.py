"""Measure the steps of a session, for the latency model of its device."""

from __future__ import annotations

import itertools
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from math import ceil

import numpy as np

from nemodiff_trt.runtime.planner.latency_model import LatencyModel, Step, StepTime
from nemodiff_trt.runtime.session import Session
from nemodiff_trt.vocabulary import Role, Target

# Roles that a choice is made between, and prefill, which a simulation needs as well.
_ROLES = (Role.DECODE, Role.DRAFT, Role.VERIFY, Role.PREFILL)

# Rounds, in which a step of middling time takes one turn.
NUM_REPEATS = 8
_FEWEST_TURNS, _MOST_TURNS = 0.25, 4.0


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
    """Time of every step of `steps_to_measure`, see `StepTimer`; a step of middling time takes `num_repeats` turns."""
    timer = StepTimer(session, clock)
    for _ in range(num_repeats):
        for step in timer.next_round():
            timer.time(step)
    return timer.step_times()


class StepTimer:
    """Takes the times of all steps as a loop that runs them sees them.

    The order is random, and every step runs twice in a row, because a step runs faster after one like it: in a loop some do and
    some do not. A quick step takes more turns than a slow one. Whatever else the machine does makes single runs several times
    slower; so a step is as long as its median runs, and what slow runs add in all is added to every step in proportion: they
    belong to what a loop sees, and to no step.
    """

    def __init__(self, session: Session, clock: Callable[[], float] = time.perf_counter) -> None:
        """Run every step twice, which allocates, binds and warms up. `clock` is in seconds."""
        self._session, self._clock = session, clock
        self._cache = session.create_cache(session.limits.max_batch_size)
        self._generator = np.random.default_rng(0)
        self.num_rounds = 0
        self._steps = list(steps_to_measure(session))
        self._turns = _turns({step: self._run_twice(step)[1] for step in self._steps})
        self._seconds: dict[Step, list[tuple[float, float]]] = {step: [] for step in self._steps}

    def next_round(self) -> list[Step]:
        """Steps of the next round, in a random order. Each is in the first, slow ones are not in every other."""
        due = []
        for step, turns in self._turns.items():
            due += [step] * (ceil((self.num_rounds + 1) * turns) - ceil(self.num_rounds * turns))
        self.num_rounds += 1
        found: list[Step] = self._generator.permutation(np.array(due, object)).tolist()
        return found

    def time(self, step: Step) -> None:
        """Let a step take a turn."""
        self._seconds[step].append(self._run_twice(step))

    def step_times(self) -> list[StepTime]:
        """Of every step, which had a turn at least."""
        typical = {step: float(np.median(times, axis=0).mean()) for step, times in self._seconds.items()}
        measured_s = sum(float(np.sum(times)) for times in self._seconds.values())
        added = measured_s / sum(2 * len(times) * typical[step] for step, times in self._seconds.items())
        return [StepTime(step, typical[step] * added * 1e3) for step in self._steps]

    def _run_twice(self, step: Step) -> tuple[float, float]:
        ids = self._generator.integers(0, self._session.model.vocab_size, (step.batch, step.step))
        rows = self._cache.rows(0, step.batch)
        rows.length[:] = _histories(step, self._session.limits.cache_capacity)
        last_index = np.full(step.batch, step.step - 1) if step.role is Role.PREFILL else None
        times = [self._clock()]
        for _ in range(2):
            self._session.run(step.role, ids, rows, last_index)
            times.append(self._clock())
        return times[1] - times[0], times[2] - times[1]


def _turns(seconds: Mapping[Step, float]) -> dict[Step, float]:
    """Turns of every step in a round: one for a step of middling time, more or fewer so that all take about as long."""
    middle = statistics.median(seconds.values())
    return {step: min(max(middle / max(took, 1e-9), _FEWEST_TURNS), _MOST_TURNS) for step, took in seconds.items()}


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

"""Measure the steps of a session, for the latency model of its device."""

from __future__ import annotations

import itertools
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import ceil

import numpy as np

from nemodiff_trt.runtime.planner.latency_model import LatencyModel, Step, StepTime
from nemodiff_trt.runtime.session import Session
from nemodiff_trt.vocabulary import Role, Target


@dataclass(frozen=True, slots=True)
class _Cycle:
    """What a loop runs again and again.

    Attributes:
        roles: in their order.
        num_runs: of the cycle, in a turn.
        num_cold: of these, left out because only the first cycles after another kind run like them.
    """

    roles: tuple[Role, ...]
    num_runs: int
    num_cold: int


# The first four decoding steps after other runs take 37, 27, 10 and 5 % longer than later ones (batch 1 to 8 on a CPU). A
# chunk of prefill comes between others, or behind one like it.
_CYCLES = (_Cycle((Role.DECODE,), 9, 4), _Cycle((Role.DRAFT, Role.VERIFY), 3, 1), _Cycle((Role.PREFILL,), 2, 0))

# Rounds, in which a cycle of middling time takes one turn.
NUM_REPEATS = 8
_FEWEST_TURNS, _MOST_TURNS = 0.25, 4.0

# Turns in a row that have the pace of the machine in common: short against its slow phases, which last seconds.
_PHASE_TURNS = 32
_PACE_PASSES = 4


def cycles_to_measure(session: Session) -> Iterator[tuple[_Cycle, tuple[Step, ...]]]:
    """Powers of two of rows and step tokens up to what was built, with short and long histories."""
    limits = session.limits
    histories = sorted({max(1, limits.max_seq_len * share // 16) for share in (1, 2, 4, 8, 12)})
    for cycle in _CYCLES:
        roles = [role for role in cycle.roles if role in session.roles]
        if not roles:
            continue
        longest = max(map(limits.longest_step, roles))
        lengths = powers(4, longest) if longest > 1 else [1]
        for batch, length, history in itertools.product(powers(1, limits.max_batch_size), lengths, histories):
            # A chunk of prefill may be as long as the cache.
            if history + length <= limits.cache_capacity:
                yield cycle, tuple(Step(role, batch, length, float(history)) for role in roles)


def measure_steps(
    session: Session, num_repeats: int = NUM_REPEATS, clock: Callable[[], float] = time.perf_counter
) -> list[StepTime]:
    """Time of every step of `cycles_to_measure`, see `StepTimer`; a cycle of middling time takes `num_repeats` turns."""
    timer = StepTimer(session, clock)
    for _ in range(num_repeats):
        for turn in timer.next_round():
            timer.time(turn)
    return timer.step_times()


class StepTimer:
    """Takes the times of all steps as a loop that runs them sees them.

    The order is random, and a turn runs a cycle a few times in a row, because a step runs faster after others like it. A quick
    cycle takes more turns than a slow one. Whatever else the machine does makes single runs several times slower, and for
    seconds all of them by a half; so a step is as long as its median runs once the pace of its phase is divided out. What
    slow runs and phases add in all is added to every step in proportion: they belong to what a loop sees, and to no step.
    """

    def __init__(self, session: Session, clock: Callable[[], float] = time.perf_counter) -> None:
        """Run every cycle for a turn, which allocates, binds and warms up. `clock` is in seconds."""
        self._session, self._clock = session, clock
        self._cache = session.create_cache(session.limits.max_batch_size)
        self._generator = np.random.default_rng(0)
        self.num_rounds = 0
        self._cycles = list(cycles_to_measure(session))
        self._shares = _shares([float(self._run(*cycle)[-1].sum()) for cycle in self._cycles])
        # Cycle of every turn and its times, float64 [counted runs, steps].
        self._turns: list[tuple[int, np.ndarray]] = []

    def next_round(self) -> list[int]:
        """Turns of the next round, in a random order. Each cycle has one in the first, slow ones have none in every other."""
        due = []
        for cycle, share in enumerate(self._shares):
            due += [cycle] * (ceil((self.num_rounds + 1) * share) - ceil(self.num_rounds * share))
        self.num_rounds += 1
        found: list[int] = self._generator.permutation(due).tolist()
        return found

    def time(self, turn: int) -> list[StepTime]:
        """Let a cycle have its turn; the mean time of its steps in it."""
        cycle, steps = self._cycles[turn]
        seconds = self._run(cycle, steps)
        self._turns.append((turn, seconds))
        return [StepTime(step, float(own) * 1e3) for step, own in zip(steps, seconds.mean(axis=0), strict=True)]

    def step_times(self) -> list[StepTime]:
        """Of every step, which had a turn at least."""
        typical = _typical(self._turns, len(self._cycles))
        measured_s = sum(float(seconds.sum()) for _, seconds in self._turns)
        added = measured_s / sum(float(typical[cycle].sum()) for cycle, _ in self._turns)
        return [
            StepTime(step, float(seconds) * added * 1e3)
            for (_, steps), own in zip(self._cycles, typical, strict=True)
            for step, seconds in zip(steps, own.mean(axis=0), strict=True)
        ]

    def _run(self, cycle: _Cycle, steps: Sequence[Step]) -> np.ndarray:
        """Seconds of the steps of a turn without its cold runs, float64 [runs, steps]."""
        limits = self._session.limits
        rows = self._cache.rows(0, steps[0].batch)
        rows.length[:] = _histories(steps[0], limits.cache_capacity)
        ids = self._generator.integers(0, self._session.model.vocab_size, (steps[0].batch, steps[0].step))
        last_index = np.full(steps[0].batch, steps[0].step - 1)
        times = [self._clock()]
        for _ in range(cycle.num_runs):
            for step in steps:
                self._session.run(step.role, ids, rows, last_index if step.role is Role.PREFILL else None)
                times.append(self._clock())
        found: np.ndarray = np.diff(times).reshape(cycle.num_runs, len(steps))[cycle.num_cold :]
        return found


def _typical(turns: Sequence[tuple[int, np.ndarray]], num_cycles: int) -> list[np.ndarray]:
    """Median times of every cycle, float64 [counted runs, steps], once the pace of each phase is divided out.

    In turns: times of cycles given the pace, pace given the times of cycles.
    """
    phases = np.minimum(np.arange(len(turns)) // _PHASE_TURNS, max(len(turns) // _PHASE_TURNS - 1, 0))
    pace = np.ones(phases[-1] + 1)
    typical: list[np.ndarray] = []
    for _ in range(_PACE_PASSES):
        by_cycle: list[list[np.ndarray]] = [[] for _ in range(num_cycles)]
        for phase, (cycle, seconds) in zip(phases, turns, strict=True):
            by_cycle[cycle].append(seconds / pace[phase])
        typical = [np.median(own, axis=0) for own in by_cycle]
        ratios = np.array([seconds.sum() / typical[cycle].sum() for cycle, seconds in turns])
        pace = np.array([np.median(ratios[phases == phase]) for phase in range(len(pace))])
    return typical


def _shares(seconds: Sequence[float]) -> list[float]:
    """Turns of every cycle in a round: one for a cycle of middling time, more or fewer so that all take about as long."""
    middle = statistics.median(seconds)
    return [min(max(middle / max(took, 1e-9), _FEWEST_TURNS), _MOST_TURNS) for took in seconds]


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


def powers(first: int, last: int) -> list[int]:
    """Powers of two from `first` on, and `last`."""
    return sorted({last, *(1 << exponent for exponent in range(last.bit_length()) if first <= 1 << exponent <= last)})

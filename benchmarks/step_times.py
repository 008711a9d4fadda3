"""Time of single engine runs: by step length and batch, and by cache capacity."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from bundles import build
from measure import interleaved, median_ms

from nemodiff_trt.bundle import Bundle
from nemodiff_trt.runtime.planner.latency_model import Step, StepTime
from nemodiff_trt.runtime.session_onnxruntime import OnnxRuntimeSession
from nemodiff_trt.vocabulary import Role

USED_TOKENS = 100
_FIRST_ORDINARY_ID = 101
# The first run after one of another shape finds other data in the caches of the processor; in a loop most follow one like them.
_RUNS_IN_A_ROW = 5


def step_cases(
    session: OnnxRuntimeSession, shapes: list[tuple[Role, int, int]], used_tokens: int
) -> dict[str, Callable[[], object]]:
    """One engine run for each (role, step, batch), on random tokens behind `used_tokens` others."""
    rng = np.random.default_rng(0)
    cases: dict[str, Callable[[], object]] = {}
    for role, step, batch in shapes:
        cache = session.create_cache(batch)
        for buffer in (*cache.keys, *cache.values):
            buffer[:, :, :used_tokens] = rng.standard_normal(buffer[:, :, :used_tokens].shape)
        cache.length[:] = used_tokens
        ids = rng.integers(_FIRST_ORDINARY_ID, session.model.vocab_size, (batch, step))
        cases[f"{role} S={step} B={batch}"] = lambda role=role, ids=ids, cache=cache: session.run(role, ids, cache)
    return cases


def _times_in_a_row(cases: dict[str, Callable[[], object]], num_repeats: int) -> dict[str, list[float]]:
    """Seconds of `_RUNS_IN_A_ROW` runs of every case, which take turns."""

    def several(run: Callable[[], object]) -> Callable[[], None]:
        def runs() -> None:
            for _ in range(_RUNS_IN_A_ROW):
                run()

        return runs

    return interleaved({name: several(run) for name, run in cases.items()}, num_repeats, num_warmup=1)


def step_table(session: OnnxRuntimeSession, steps: list[int], batches: list[int], num_repeats: int) -> list[StepTime]:
    """Median time of every step length and batch: `decode` for one token, `verify` and `draft` for more."""
    limits = session.limits
    shapes = [
        (role, step, batch)
        for batch in batches
        if batch <= limits.max_batch_size
        for step in steps
        if step <= limits.block_length
        for role in ((Role.DECODE,) if step == 1 else (Role.VERIFY, Role.DRAFT))
    ]
    used_tokens = min(USED_TOKENS, limits.max_seq_len // 2)
    times = _times_in_a_row(step_cases(session, shapes, used_tokens), num_repeats)
    return [
        StepTime(Step(role, batch, step, float(used_tokens)), median_ms(seconds) / _RUNS_IN_A_ROW)
        for (role, step, batch), seconds in zip(shapes, times.values(), strict=True)
    ]


def capacity_sessions(
    session: OnnxRuntimeSession, checkpoint: str, folder: Path, capacities: list[int], num_threads: int
) -> list[OnnxRuntimeSession]:
    """One session for each capacity, built like `session` but for that; for its own capacity `session` itself."""
    limits, sessions = session.limits, []
    for capacity in capacities:
        if capacity == limits.cache_capacity:
            sessions.append(session)
            continue
        output = folder / f"capacity-{capacity}"
        build(
            checkpoint,
            output,
            max_seq_len=capacity - limits.block_length,
            block_length=limits.block_length,
            max_batch_size=limits.max_batch_size,
        )
        sessions.append(OnnxRuntimeSession.open(Bundle.open(output), num_threads))
    return sessions


def capacity_table(sessions: list[OnnxRuntimeSession], num_repeats: int) -> list[dict[str, Any]]:
    """Median milliseconds of a one-token step and a block step for every session, at the same used length."""
    cases: dict[str, Callable[[], object]] = {}
    keys: list[tuple[int, int]] = []
    capacities = [session.limits.cache_capacity for session in sessions]
    used = min(USED_TOKENS, min(capacities) // 2)
    for session, capacity in zip(sessions, capacities, strict=True):
        shapes = [(Role.DECODE, 1, 1), (Role.VERIFY, session.limits.block_length, 1)]
        for (_, step, _), case in zip(shapes, step_cases(session, shapes, used).values(), strict=True):
            cases[f"{capacity} {step}"] = case
            keys.append((capacity, step))
    times = _times_in_a_row(cases, num_repeats)
    return [
        {"capacity": capacity, "step": step, "used_tokens": used, "ms": median_ms(seconds) / _RUNS_IN_A_ROW}
        for (capacity, step), seconds in zip(keys, times.values(), strict=True)
    ]


def capacity_ratio(rows: list[dict[str, Any]]) -> float:
    """Slowest over fastest capacity, of the step length where this is worse."""
    by_step: dict[int, list[float]] = {}
    for row in rows:
        by_step.setdefault(row["step"], []).append(row["ms"])
    return max(max(times) / min(times) for times in by_step.values())

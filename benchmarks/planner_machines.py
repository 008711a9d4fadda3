"""Mode auto against every fixed setting of nemodiff-tiny on machines that are drawn at random, without waiting for any of them.

What one table of wall times cannot tell: whether choices are good, or were lucky on this machine and this day. Answers are
recorded once, with how far drafts are right at every position of them. Then the engine loop replays them on a clock: a run
takes its calibrated time, times a factor that is drawn for every machine, block length and number of rows, and unknown to auto;
what the loop and a decision take beside runs, and cold caches after runs of another kind, are added. Auto sees a clock that is
disturbed as this one is (phases of 6 ms to 10 s, interruptions); what it is compared by is not disturbed. Workloads, rounds and
settings are those of `planner.py`; two rounds do not count, as there. Prints tables; the last line is one JSON object, and the
exit code is 1 when a target is missed.
"""

from __future__ import annotations

import argparse
import json
import math
import pickle
import statistics
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from bundles import build
from measure import Target, hardware, versions
from planner import BLOCK_LENGTHS, WAVES, Request, workloads
from replay import Recorded, ReplaySession, record
from rich.console import Console
from rich.table import Table

from nemodiff_trt.bundle import Bundle
from nemodiff_trt.runtime.engine import EngineOptions, TokenEngine, TriModeEngine
from nemodiff_trt.runtime.options import GenerationOptions
from nemodiff_trt.runtime.planner import LatencyModel, Policy, Step
from nemodiff_trt.runtime.planner.calibrate import measure_steps
from nemodiff_trt.runtime.session import Session
from nemodiff_trt.runtime.session_onnxruntime import OnnxRuntimeSession
from nemodiff_trt.tokenizer import Tokenizer
from nemodiff_trt.vocabulary import Mode, Role

# Milliseconds of the loop beside every run, for each of its rows, of a decision, and of a choice, as measured on two CPU cores.
RUN_MS, ROW_MS, DECISION_MS, CHOICE_MS = 0.08, 0.02, 0.04, 0.2
# The first run after those of another kind takes so much longer: of one token, and of blocks.
COLD_DECODE, COLD_BLOCK = 0.2, 0.05
# What the clock shows: phases by their standard deviation (of the logarithm) and length in milliseconds, and single runs, as
# measured here (the variogram of cycles that decode alike rises by about as much with every doubling of the time between them,
# from 5 milliseconds to 10 seconds); one cycle in a hundred is interrupted for so long.
PHASES = ((0.06, 6.0), (0.06, 30.0), (0.055, 200.0), (0.06, 1500.0), (0.09, 10_000.0))
SINGLE, INTERRUPTED, INTERRUPTION_MS = 0.065, 0.01, 3.0
# By which block lengths differ from each other, of what `ar` differs from them.
OWN = 0.35
# Rounds of auto that do not count, and those that do by requests at a time: about as many as `planner.py` takes.
LEARNING, COUNTED = 2, {1: 6, 2: 6, 4: 5, 8: 4, 16: 3}
_PATH_MS = 120_000


class Machine:
    """A clock that advances with every run: `cost_ms` undisturbed, `now_s` as it is seen."""

    def __init__(self, latency: LatencyModel, spread: float, seed: int) -> None:
        """Draw a machine around `latency`, on which `ar` takes `spread` more or less (of the logarithm) against blocks.

        These have most of what calibration misses in common, because it is work of the host and long histories.
        """
        self.cost_ms = self.now_s = 0.0
        self._latency = latency
        self._generator = np.random.default_rng(seed)
        buckets = 1 + max(COUNTED).bit_length()
        spreads = spread * np.array([1, *(OWN for _ in BLOCK_LENGTHS)])[:, None]
        factors = np.exp(self._generator.normal(0, spreads) + self._generator.normal(0, spreads / 2, (len(spreads), buckets)))
        self._factors = dict(zip((1, *BLOCK_LENGTHS), factors.tolist(), strict=True))
        self._pace = _pace(self._generator)
        self._place = int(self._generator.integers(_PATH_MS))
        self._last_kind = 0
        self._known: dict[Step, float] = {}

    def run(self, step: Step) -> None:
        kind = 0 if step.role is Role.PREFILL else step.step
        ms = self._run_ms(step)
        if kind != self._last_kind:
            ms *= 1 + (COLD_DECODE if kind == 1 else COLD_BLOCK)
        self._last_kind = kind
        self.pass_ms(ms + RUN_MS + ROW_MS * step.batch)

    def pass_ms(self, ms: float) -> None:
        """Let time pass."""
        self.cost_ms += ms
        begin, end = self._place, self._place + max(1, round(ms))
        pace = float(self._pace[begin:end].mean()) if end <= _PATH_MS else 1.0
        self._place = end % _PATH_MS
        seen = ms * pace * math.exp(self._generator.normal(0, SINGLE))
        if self._generator.random() < INTERRUPTED:
            seen += self._generator.uniform(0, 2 * INTERRUPTION_MS)
        self.now_s += seen / 1e3

    def _run_ms(self, step: Step) -> float:
        """Without what is drawn for single runs. Histories of sixteen tokens count as one."""
        like = Step(step.role, step.batch, step.step, 16.0 * round(step.history / 16))
        ms = self._known.get(like)
        if ms is None:
            factors = self._factors.get(step.step) if step.role is not Role.PREFILL else None
            ms = self._latency.ms(like) * (factors[(step.batch - 1).bit_length()] if factors else 1.0)
            self._known[like] = ms
        return ms


def _pace(generator: np.random.Generator) -> np.ndarray:
    """By which the machine is slower, by millisecond."""
    log = np.zeros(_PATH_MS)
    for deviation, length_ms in PHASES:
        kept, value, path = math.exp(-1 / length_ms), 0.0, []
        for step in generator.normal(0, deviation * math.sqrt(1 - kept**2), _PATH_MS).tolist():
            value = kept * value + step
            path.append(value)
        log += path
    found: np.ndarray = np.exp(log)
    return found


class TimedPolicy(Policy):
    """Decisions and choices take time of a machine."""

    machine: Machine

    def decide(self, *arguments: Any, **named: Any) -> None:
        super().decide(*arguments, **named)
        self.machine.pass_ms(DECISION_MS)

    def _choose(self, *arguments: Any) -> bool:
        is_new = super()._choose(*arguments)
        self.machine.pass_ms(CHOICE_MS)
        return is_new


class RunLog:
    """A clock that notes what runs."""

    def __init__(self) -> None:
        self.steps: list[Step] = []

    def run(self, step: Step) -> None:
        self.steps.append(step)


def answer_all(session: ReplaySession, level: int, options: GenerationOptions, policy: Policy | None = None) -> None:
    """All requests, `level` at a time.

    Raises:
        RuntimeError: a request has other tokens than recorded.
    """
    engine = TokenEngine(session, EngineOptions(max_active=level, prefix_rows=0, min_prefix=10**6), policy)
    answers = [session.start(request) for request in range(len(session.requests))]
    for answer in answers:
        engine.submit(answer, options)
    while engine.has_work:
        engine.admit()
        for _ in engine.run():
            pass
        engine.retire()
    session.check(answers)


@dataclass(frozen=True)
class Cell:
    """One workload at one concurrency."""

    workload: str
    level: int
    session: ReplaySession


def compare(cell: Cell, latencies: Sequence[LatencyModel], num_machines: int, spread: float) -> list[tuple[float, float]]:
    """Speed of auto over the best fixed setting, and over ar, by machine."""
    session, fixed = cell.session, {}
    for length in (1, *BLOCK_LENGTHS):
        session.clock = fixed[length] = RunLog()
        mode = {"mode": Mode.SELF_SPECULATION, "block_length": length} if length > 1 else {"mode": Mode.AR}
        answer_all(session, cell.level, GenerationOptions(**mode))
    found = []
    for seed in range(num_machines):
        # What was calibrated differs as two calibrations do.
        latency = latencies[seed % len(latencies)]
        took = {}
        for length, log in fixed.items():
            machine = Machine(latency, spread, seed)
            for step in log.steps:
                machine.run(step)
            took[length] = machine.cost_ms
        auto_ms = _auto_ms(cell, latency, spread, seed)
        found.append((min(took.values()) / auto_ms, took[1] / auto_ms))
    return found


def _auto_ms(cell: Cell, latency: LatencyModel, spread: float, seed: int) -> float:
    """Of a round, without those that do not count."""
    machine = cell.session.clock = Machine(latency, spread, seed)
    policy = TimedPolicy.for_session(cell.session, latency, clock=lambda: machine.now_s)
    policy.machine, begin_ms = machine, 0.0
    for number in range(LEARNING + COUNTED[cell.level]):
        if number == LEARNING:
            begin_ms = machine.cost_ms
        answer_all(cell.session, cell.level, GenerationOptions(mode=Mode.AUTO), policy)
    return (machine.cost_ms - begin_ms) / COUNTED[cell.level]


def record_all(session: Session, tokenizer: Tokenizer, requests: Sequence[Request]) -> list[Recorded]:
    """Answer all by ar, and draft behind every token."""
    engine = TriModeEngine(session, tokenizer, EngineOptions(prefix_rows=0, min_prefix=10**6))
    numbers = [engine.submit(prompt, options.changed(mode=Mode.AR), stream_text=False) for prompt, options in requests]
    answers: dict[int, Sequence[int]] = {}
    while engine.has_work:
        answers |= {report.request: result.token_ids for report in engine.step() if (result := report.event.result) is not None}
    return [
        record(session, prompt, answers[number], options, BLOCK_LENGTHS)
        for number, (prompt, options) in zip(numbers, requests, strict=True)
    ]


def prepare(num_prompts: int, levels: Sequence[int], max_new_tokens: int) -> tuple[list[Cell], list[LatencyModel]]:
    """What to replay, and two calibrations of this machine."""
    with tempfile.TemporaryDirectory() as folder:
        build("nemodiff-tiny", Path(folder) / "b", max_seq_len=512, block_length=32, max_batch_size=16, sampling=True)
        bundle = Bundle.open(Path(folder) / "b")
        session, tokenizer = OnnxRuntimeSession.open(bundle, 2), Tokenizer.from_dir(bundle.tokenizer_dir)
        latencies = [LatencyModel.calibrate("this CPU", measure_steps(session)) for _ in range(2)]
        counts = {level: max(num_prompts, WAVES * level) for level in levels}
        by_kind = workloads(tokenizer, max(counts.values()), max_new_tokens)
        easy, hard = (record_all(session, tokenizer, by_kind[name]) for name in ("easy", "hard"))
        cells = []
        for level, count in counts.items():
            both = [request for pair in zip(easy, hard, strict=True) for request in pair]
            half = count // 2
            by_name = {"easy": easy[:count], "hard": hard[:count], "mixed": both[:count], "changing": easy[:half] + hard[:half]}
            cells += [Cell(name, level, ReplaySession(session, requests)) for name, requests in by_name.items()]
    return cells, latencies


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-machines", type=int, default=16)
    parser.add_argument("--spread", type=float, default=0.08, help="of step times around the calibrated ones; 0.1 is 10 %%")
    parser.add_argument("--num-prompts", type=int, default=24, help="at least; six for each that decodes at a time")
    parser.add_argument("--max-new-tokens", type=int, default=80)
    parser.add_argument("--levels", type=lambda text: [int(part) for part in text.split(",")], default=list(COUNTED))
    parser.add_argument("--prepared", type=Path, help="file to keep what was recorded and calibrated in, or to take it from")
    return parser.parse_args()


def show(found: dict[str, dict[int, list[tuple[float, float]]]], console: Console) -> None:
    levels = list(next(iter(found.values())))
    title = "auto over the best fixed setting by requests at a time: mean (worst)"
    table = Table("", *map(str, levels), title=title, title_justify="left")
    for name, by_level in found.items():
        over_best = [[best for best, _ in by_level[level]] for level in levels]
        table.add_row(name, *(f"{statistics.mean(own):.3f} ({min(own):.2f})" for own in over_best))
    console.print(table)


def main() -> None:
    arguments, console = parse_arguments(), Console()
    kept: Path | None = arguments.prepared
    if kept is not None and kept.exists():
        cells, latencies = pickle.loads(kept.read_bytes())
    else:
        cells, latencies = prepare(arguments.num_prompts, arguments.levels, arguments.max_new_tokens)
        if kept is not None:
            kept.write_bytes(pickle.dumps((cells, latencies)))
    of_cell = partial(compare, latencies=latencies, num_machines=arguments.num_machines, spread=arguments.spread)
    found: dict[str, dict[int, list[tuple[float, float]]]] = {}
    with ProcessPoolExecutor() as pool:
        for cell, speeds in zip(cells, pool.map(of_cell, cells), strict=True):
            found.setdefault(cell.workload, {})[cell.level] = speeds
    show(found, console)
    everything = [speeds for by_level in found.values() for own in by_level.values() for speeds in own]
    targets = {
        "auto_over_best_fixed_mean": Target(statistics.mean(best for best, _ in everything), at_least=0.97),
        "share_below_0.95_of_best": Target(statistics.mean(best < 0.95 for best, _ in everything), at_most=0.05),
        "share_below_0.97_of_ar": Target(statistics.mean(ar < 0.97 for _, ar in everything), at_most=0.05),
    }
    for name, target in targets.items():
        console.print(f"{name}: {target.value:.3g} ({'met' if target.is_met else 'MISSED'})")
    result = {
        "benchmark": "planner_machines",
        "hardware": hardware(1),
        "versions": versions(),
        "clock": "calibrated step times, drawn anew for every machine",
        "num_machines": arguments.num_machines,
        "spread": arguments.spread,
        "auto_over_best_and_ar": found,
        "targets": {name: target.to_dict() for name, target in targets.items()},
    }
    print(json.dumps(result))
    sys.exit(0 if all(target.is_met for target in targets.values()) else 1)


if __name__ == "__main__":
    main()

"""Mode auto against every fixed setting of nemodiff-tiny on this machine's CPU, and the latency model against measured steps.

Workloads: easy (copying, counting), hard (sampled at a high temperature, where drafts are seldom right), mixed, and one that
changes from easy to hard midway; 1 to 16 requests at a time. All settings go through their requests at one pace, some steps
each in turn, so that what the machine does meets all alike. Answers are compared in all rounds. The first round does not count
for auto, which learns: beside other work it learns other times than alone. Fixed settings that are far behind in that round
take no part in the others, of which there are so many that each setting gets a few seconds; half of these rounds go through the
settings in the reverse order. With `--modelled` the loop runs on a clock that counts the calibrated time of every step, and
nothing else: what the choices are worth where step times are as calibrated, without the noise of a shared machine. With
`--measurements FILE` (CSV: block, concurrency, query_tokens, history, draft_ms, verify_ms) the form of the model is fitted to
one half of somebody else's measurements and compared with the other.
Prints tables; the last line is one JSON object, and the exit code is 1 when a target is missed.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from bundles import build
from measure import Target, hardware, versions
from pace import at_one_pace
from rich.console import Console
from rich.table import Table

from nemodiff_trt.bundle import Bundle
from nemodiff_trt.runtime.engine import EngineOptions, TriModeEngine
from nemodiff_trt.runtime.options import GenerationOptions
from nemodiff_trt.runtime.planner import LatencyModel, PlannedRequest, Policy, Step, StepTime
from nemodiff_trt.runtime.planner.acceptance import SharedAcceptance
from nemodiff_trt.runtime.planner.calibrate import held_out_error, measure_steps
from nemodiff_trt.runtime.planner.calibrate_loop import measure_loop
from nemodiff_trt.runtime.session_onnxruntime import OnnxRuntimeSession
from nemodiff_trt.runtime.simulator import AcceptanceProfile
from nemodiff_trt.runtime.simulator.acceptance import PUBLISHED_TOKENS
from nemodiff_trt.tokenizer import Tokenizer
from nemodiff_trt.training.problems import held_out_problems
from nemodiff_trt.vocabulary import Mode, Role

SEED = 7_000_011
BLOCK_LENGTHS = (4, 8, 16, 32)
EASY = ("copy", "count")
WORKLOADS = ("easy", "hard", "mixed", "changing")
# Cached tokens of a request, about those the step times were taken at.
HISTORY = 750.0
# Block lengths that users of the 8B model serve with, by requests at a time.
PUBLISHED_PAIRS = {1: 32, 2: 32, 4: 32, 8: 16, 16: 16, 32: 16, 64: 8, 128: 8}

# Fixed settings this much slower than the best are not timed again.
FAR_BEHIND = 1.3
# What auto has to reach in every cell. Cells this near to either, above or below, are timed for twice as long.
OVER_BEST, OVER_AR, NEAR = 0.95, 0.97, 0.015
# Requests of a run for each that decodes at a time: with few of them the end counts most, where slots stay empty.
WAVES = 6

Request = tuple[list[int], GenerationOptions]


def workloads(tokenizer: Tokenizer, count: int, max_new_tokens: int, equal_lengths: bool = False) -> dict[str, list[Request]]:
    """So many requests of each; sampled answers have `max_new_tokens`, by half more or less unless lengths are equal."""
    problems = held_out_problems(40 * count, SEED)
    plain = GenerationOptions(max_new_tokens=max_new_tokens)
    warm = plain.changed(temperature=1.6, ignore_eos=True)

    # Sampled answers go on to their last token. Were they equally long, those that begin together would end together without
    # drafts, wave by wave, which spares rows of unequal length and prompts alone in a run; only equal answers do.
    spread = 0 if equal_lengths else max_new_tokens // 2
    lengths = np.random.default_rng(SEED).integers(-spread, spread, count, endpoint=True) + max_new_tokens

    def asked(place: int, is_easy: bool) -> Request:
        wanted = [problem for problem in problems if any(name in problem.category for name in EASY) == is_easy]
        problem = wanted[place % len(wanted)]
        chat = tokenizer.apply_chat_template([{"role": "user", "content": problem.prompt}])
        return tokenizer.encode(chat), plain if is_easy else warm.changed(seed=place, max_new_tokens=int(lengths[place]))

    easy, hard = ([asked(place, is_easy) for place in range(count)] for is_easy in (True, False))
    mixed = [request for pair in zip(easy, hard, strict=True) for request in pair][:count]
    return {"easy": easy, "hard": hard, "mixed": mixed, "changing": easy[: count // 2] + hard[: count // 2]}


def settings() -> dict[str, dict[str, Any]]:
    fixed = {f"B={length}": {"mode": Mode.SELF_SPECULATION, "block_length": length} for length in BLOCK_LENGTHS}
    return {"ar": {"mode": Mode.AR}, **fixed, "auto": {"mode": Mode.AUTO}}


@dataclasses.dataclass(slots=True)
class Speeds:
    """What `run_workloads` found, by workload and requests at a time."""

    held_out_error: float
    latency: LatencyModel
    over_ar: dict[str, dict[int, dict[str, float]]] = dataclasses.field(default_factory=dict)
    auto_seconds_over_ar: dict[str, dict[int, list[float]]] = dataclasses.field(default_factory=dict)
    decisions: dict[str, dict[int, dict[str, int]]] = dataclasses.field(default_factory=dict)


class ModelledSession:
    """Runs on a session, on a clock that advances by the calibrated time of every step."""

    def __init__(self, session: OnnxRuntimeSession, latency: LatencyModel) -> None:
        self._session, self._latency, self.now_s = session, latency, 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def run(self, role: Role, input_ids: np.ndarray, cache: Any, *arguments: Any) -> Any:
        self.now_s += self._latency.ms(Step.of_run(role, input_ids, cache.length)) / 1e3
        return self._session.run(role, input_ids, cache, *arguments)


class Case:
    """One workload with one setting at one concurrency."""

    def __init__(
        self,
        session: OnnxRuntimeSession | ModelledSession,
        tokenizer: Tokenizer,
        requests: list[Request],
        concurrency: int,
        latency: LatencyModel,
        clock: Callable[[], float],
    ) -> None:
        self.requests = requests
        self.answers: list[tuple[int, ...]] = []
        self.decisions: dict[str, int] = {}
        options = EngineOptions(max_active=concurrency, prefix_rows=0, min_prefix=10**6)
        # Others have nothing to choose. A server keeps what it learned, too.
        policy = Policy.for_session(session, latency, clock=clock) if requests[0][1].mode is Mode.AUTO else None
        self._engine = lambda: TriModeEngine(session, tokenizer, options, clock, policy)

    def steps(self) -> Iterator[None]:
        """Answer all requests, a step of the engine whenever advanced; `answers` and `decisions` are known at the end."""
        engine = self._engine()
        numbers = [engine.submit(prompt, options, stream_text=False) for prompt, options in self.requests]
        found: dict[int, tuple[int, ...]] = {}
        while engine.has_work:
            for reported in engine.step():
                if reported.event.result is not None:
                    found[reported.request] = reported.event.result.token_ids
            yield
        self.answers = [found[number] for number in numbers]
        self.decisions = engine.stats()["decisions"]


def compare(cases: dict[str, Case], seconds: float, clock: Callable[[], float]) -> tuple[dict[str, float], list[float]]:
    """Speed of every setting over ar; and time of auto over that of ar, one per round.

    Raises:
        RuntimeError: a setting gives other tokens than ar.
    """
    alone: dict[str, float] = {}

    def timed(names: Sequence[str]) -> dict[str, float]:
        found = at_one_pace({name: cases[name].steps() for name in names}, alone, clock)
        for name in names:
            if cases[name].answers != cases["ar"].answers:
                raise RuntimeError(f"{name} gives other tokens than ar; its speed would mean nothing")
        return found

    for name, case in cases.items():
        alone |= at_one_pace({name: case.steps()}, {name: 1.0}, clock)
    first = timed(list(cases))
    best = min(took for name, took in first.items() if name != "auto")
    close = [name for name, took in first.items() if took < FAR_BEHIND * best or name in ("ar", "auto")]
    rounds: list[dict[str, float]] = []

    def lasted_s() -> float:
        """Time of the quickest setting, or half of it where auto is so near a target that more has to tell."""
        spent = {name: sum(took[name] for took in rounds) for name in close}
        over_ar = spent["ar"] / spent["auto"]
        over_best = min(own for name, own in spent.items() if name != "auto") / spent["auto"]
        is_near = abs(over_ar - OVER_AR) < NEAR or abs(over_best - OVER_BEST) < NEAR
        return min(spent.values()) / (2 if is_near else 1)

    # Who comes first in a round is about 1 % faster than who comes next, whatever it is: every other round goes backwards.
    while not rounds or len(rounds) % 2 or lasted_s() < seconds:
        rounds.append(timed(close[:: -1 if len(rounds) % 2 else 1]))
    over_ar = {}
    for name in cases:
        own = rounds if name in close else [first]
        over_ar[name] = sum(took["ar"] for took in own) / sum(took[name] for took in own)
    return over_ar, [took["auto"] / took["ar"] for took in rounds]


def read_measurements(path: Path) -> list[list[StepTime]]:
    """Draft and verify times of every line."""
    found = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if line[:1].isdigit():
            block, concurrency, _, history, draft, verify = map(float, line.split(","))
            steps = {role: Step(role, int(concurrency), int(block), history) for role in (Role.DRAFT, Role.VERIFY)}
            found.append([StepTime(steps[Role.DRAFT], draft), StepTime(steps[Role.VERIFY], verify)])
    return found


def policy_choices(measured: LatencyModel) -> dict[int, int]:
    """Block length the policy chooses by concurrency, after many cycles with the published acceptance. 1 is ar.

    Steps of one token were not measured: they are taken for verification of one.
    """
    latency = LatencyModel(measured.device, False, {**measured.roles, Role.DECODE: measured.roles[Role.VERIFY]})
    profile, generator, chosen = AcceptanceProfile.from_means(PUBLISHED_TOKENS), np.random.default_rng(SEED), {}
    acceptance = SharedAcceptance(max(PUBLISHED_TOKENS), half_life=1e5)
    for _ in range(20_000):
        acceptance.observe(max(PUBLISHED_TOKENS), profile.draw(generator, max(PUBLISHED_TOKENS) - 1))
    for concurrency in PUBLISHED_PAIRS:
        policy = Policy(latency, sorted(PUBLISHED_TOKENS), max(PUBLISHED_TOKENS), max(PUBLISHED_PAIRS))
        policy.acceptance = acceptance
        requests = [PlannedRequest(acceptance, slot=slot) for slot in range(concurrency)]
        policy.decide(requests, HISTORY)
        chosen[concurrency] = requests[0].next_cycle.block_length
    return chosen


def check_form(path: Path, console: Console) -> dict[str, Any]:
    """Fit one half of the lines, predict the other, both ways; and what the model would serve with."""
    lines = read_measurements(path)
    errors = {}
    for name, first in (("odd lines", 0), ("even lines", 1)):
        model = LatencyModel.fit("measured elsewhere", [time for line in lines[first::2] for time in line])
        left_out = [time for line in lines[1 - first :: 2] for time in line]
        errors[name] = statistics.median(abs(model.ms(time.step) / time.ms - 1) for time in left_out)
    chosen = policy_choices(LatencyModel.fit("measured elsewhere", [time for line in lines for time in line]))
    table = Table("concurrency", *map(str, PUBLISHED_PAIRS), title="block length", title_justify="left")
    table.add_row("chosen by the policy", *map(str, chosen.values()))
    table.add_row("served with", *map(str, PUBLISHED_PAIRS.values()))
    console.print(table)
    return {"median_error_fitted_to": errors, "chosen": chosen, "published": PUBLISHED_PAIRS}


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-prompts", type=int, default=24, help="at least; six for each that decodes at a time")
    parser.add_argument("--seconds", type=float, default=6.0, help="of every setting that counts; twice near a target")
    parser.add_argument("--num-threads", type=int, default=2)
    parser.add_argument("--max-new-tokens", type=int, default=80)
    parser.add_argument("--equal-lengths", action="store_true", help="of sampled answers, which then end in waves")
    parser.add_argument("--workloads", type=lambda text: text.split(","), default=WORKLOADS, help=f"of {', '.join(WORKLOADS)}")
    parser.add_argument("--levels", type=lambda text: [int(part) for part in text.split(",")], default=[1, 2, 4, 8, 16])
    parser.add_argument("--measurements", type=Path, help="CSV of step times of another device")
    parser.add_argument("--cpu-time", action="store_true", help="CPU time on one thread: for a machine that is busy otherwise")
    parser.add_argument("--modelled", action="store_true", help="count calibrated step times instead of measuring time")
    arguments = parser.parse_args()
    if unknown := set(arguments.workloads) - set(WORKLOADS):
        parser.error(f"--workloads: got {', '.join(sorted(unknown))}, allowed are {', '.join(WORKLOADS)}")
    if arguments.cpu_time:
        arguments.num_threads = 1
    if arguments.modelled:
        arguments.seconds = 0.0
    arguments.clock = time.process_time if arguments.cpu_time else time.perf_counter
    return arguments


def run_workloads(session: OnnxRuntimeSession, tokenizer: Tokenizer, arguments: argparse.Namespace, console: Console) -> Speeds:
    """Speed of every setting over ar, by workload and requests at a time; with what was learned and chosen."""
    times = measure_steps(session, clock=arguments.clock)
    latency = LatencyModel.calibrate("this CPU", times)
    if not arguments.modelled:
        latency = dataclasses.replace(latency, loop=measure_loop(session, tokenizer, latency, clock=arguments.clock))
    speeds = Speeds(held_out_error("this CPU", times), latency)
    modelled = ModelledSession(session, latency)
    runs, clock = (modelled, lambda: modelled.now_s) if arguments.modelled else (session, arguments.clock)
    counts = {level: max(arguments.num_prompts, WAVES * level) for level in arguments.levels}
    by_level = {
        level: workloads(tokenizer, count, arguments.max_new_tokens, arguments.equal_lengths) for level, count in counts.items()
    }
    for name in arguments.workloads:
        table = Table(f"{name}: speed over ar", *settings())
        for level in arguments.levels:
            requests = by_level[level][name]
            cases = {
                setting: Case(runs, tokenizer, [(p, o.changed(**changes)) for p, o in requests], level, latency, clock)
                for setting, changes in settings().items()
            }
            over, repeats = compare(cases, arguments.seconds, clock)
            speeds.over_ar.setdefault(name, {})[level] = over
            speeds.auto_seconds_over_ar.setdefault(name, {})[level] = repeats
            speeds.decisions.setdefault(name, {})[level] = cases["auto"].decisions
            table.add_row(f"{level} at a time", *(f"{speed:.2f}" for speed in over.values()))
        console.print(table)
    return speeds


def targets_of(speeds: Speeds, form: dict[str, Any] | None) -> dict[str, Target]:
    everywhere = [over for by_level in speeds.over_ar.values() for over in by_level.values()]
    worst = min(over["auto"] / max(speed for name, speed in over.items() if name != "auto") for over in everywhere)
    targets = {
        "held_out_median_error": Target(speeds.held_out_error, at_most=0.15),
        "auto_over_best_fixed_worst": Target(worst, at_least=OVER_BEST),
        "auto_over_ar_worst": Target(min(over["auto"] for over in everywhere), at_least=OVER_AR),
    }
    if form is not None:
        targets["other_device_median_error"] = Target(max(form["median_error_fitted_to"].values()), at_most=0.1)
    return targets


def main() -> None:
    arguments, console = parse_arguments(), Console()
    form = check_form(arguments.measurements, console) if arguments.measurements else None
    with tempfile.TemporaryDirectory() as folder:
        build("nemodiff-tiny", Path(folder) / "b", max_seq_len=512, block_length=32, max_batch_size=16, sampling=True)
        bundle = Bundle.open(Path(folder) / "b")
        session = OnnxRuntimeSession.open(bundle, arguments.num_threads)
        speeds = run_workloads(session, Tokenizer.from_dir(bundle.tokenizer_dir), arguments, console)
    targets = targets_of(speeds, form)
    for name, target in targets.items():
        console.print(f"{name}: {target.value:.3g} ({'met' if target.is_met else 'MISSED'})")
    result = {
        "benchmark": "planner",
        "hardware": hardware(arguments.num_threads),
        "versions": versions(),
        "clock": "calibrated step times" if arguments.modelled else "CPU time" if arguments.cpu_time else "wall time",
        "outputs_equal": True,
        "num_prompts": arguments.num_prompts,
        "equal_lengths": arguments.equal_lengths,
        "speed_over_ar": speeds.over_ar,
        "auto_seconds_over_ar_by_round": speeds.auto_seconds_over_ar,
        "decisions": speeds.decisions,
        "latency_model": {str(role): dataclasses.asdict(terms) for role, terms in speeds.latency.roles.items()},
        "loop_over_steps": speeds.latency.loop,
        "other_device": form,
        "targets": {name: target.to_dict() for name, target in targets.items()},
    }
    print(json.dumps(result))
    sys.exit(0 if all(target.is_met for target in targets.values()) else 1)


if __name__ == "__main__":
    main()

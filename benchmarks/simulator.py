"""The simulator against the engine it simulates: nemodiff-tiny on this machine's CPU.

Traces: steady (Poisson, half ar and half self_speculation), bursty (many requests at once, then none), long prompts, and all
requests at once, where the throughput is the capacity and not the rate at which requests come. Acceptance by category and the
cost of the loop are measured on other requests first; rates follow from the capacity that the simulation predicts. A shared
machine takes half as long again at times, for seconds, and whoever waits then waits for long; so the engine's clock runs at the
usual pace, which other steps tell in pauses in which it stands still. With `--measurements FILE` (step times of a B200, see
benchmarks/planner.py) also: which block length would serve how many requests best. Prints tables; the last line is one JSON
object, and the exit code is 1 when a target is missed.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from bundles import build
from machine_pace import MachinePace, PacedClock, PacedSession
from measure import Target, hardware, versions
from planner import PUBLISHED_PAIRS, read_measurements
from rich.console import Console
from rich.table import Table

from nemodiff_trt.bundle import Bundle
from nemodiff_trt.contract import Limits
from nemodiff_trt.full_size import full_size_config
from nemodiff_trt.runtime.engine import EngineOptions, TriModeEngine
from nemodiff_trt.runtime.options import GenerationOptions
from nemodiff_trt.runtime.planner import LatencyModel
from nemodiff_trt.runtime.planner.roofline import predicted_latency
from nemodiff_trt.runtime.session_onnxruntime import OnnxRuntimeSession
from nemodiff_trt.runtime.simulator import (
    AcceptanceProfile,
    Deployment,
    LoopCost,
    Outcome,
    TraceRequest,
    poisson_trace,
    simulate,
    summarize,
)
from nemodiff_trt.runtime.simulator.acceptance import PUBLISHED_TOKENS
from nemodiff_trt.tokenizer import Tokenizer
from nemodiff_trt.training.problems import held_out_problems
from nemodiff_trt.vocabulary import Mode, Precision, Role

CALIBRATION_SEED, TRACE_SEED = 7_000_021, 7_000_022
BLOCK_LENGTH, MAX_BATCH_SIZE, MAX_SEQ_LEN, PREFILL_CHUNK = 16, 8, 512, 64
# Of the capacity, so that requests wait at times and queues do not grow.
UTILIZATION = 0.6
# Prompts that a long one is made of.
NUM_PARTS = 8
# Rounds of step times before anything else, and seconds of them for one of the engine.
CALIBRATION_ROUNDS, CALIBRATION_SHARE = 12, 2.0
NO_REUSE = EngineOptions(prefix_rows=0, min_prefix=10**6)

# B200: prompts and answers about as long as those the step times were taken at.
B200_PROMPT, B200_OUTPUT = 500, 500
# SPEED-Bench, 8B with adapter: 6.82 tokens a cycle at 32 (technical report, table 10), one share for all positions.
SPEED_BENCH_TOKENS = {32: 6.82}
# What serves: cost of the loop, and mean tokens a cycle.
B200_CASES: dict[str, tuple[LoopCost, dict[int, float]]] = {
    "engine only": (LoopCost(), PUBLISHED_TOKENS),
    "0.2 ms a row": (LoopCost(row_ms=0.2), PUBLISHED_TOKENS),
    "0.02 ms a step token": (LoopCost(token_ms=0.02), PUBLISHED_TOKENS),
    "0.05 ms a step token": (LoopCost(token_ms=0.05), PUBLISHED_TOKENS),
    "SPEED-Bench acceptance": (LoopCost(), SPEED_BENCH_TOKENS),
}

Prompts = dict[str, list[list[int]]]


def prompts(tokenizer: Tokenizer, seed: int, count: int) -> Prompts:
    """Token ids by category."""
    found: Prompts = {}
    for problem in held_out_problems(count, seed):
        chat = tokenizer.apply_chat_template([{"role": "user", "content": problem.prompt}])
        found.setdefault(problem.category, []).append(tokenizer.encode(chat))
    return found


class Real:
    """The engine, and requests with a text of their category, on a clock at the usual pace of the machine."""

    def __init__(self, session: OnnxRuntimeSession, tokenizer: Tokenizer, pace: MachinePace) -> None:
        self._session, self._tokenizer, self._pace = session, tokenizer, pace
        self.stats: dict[str, Any] = {}

    def run(self, trace: Sequence[TraceRequest], texts: Sequence[list[int]]) -> list[Outcome]:
        """Submit every request when it is due, and step."""
        clock = PacedClock(self._pace)
        engine = TriModeEngine(PacedSession(self._session, clock), self._tokenizer, NO_REUSE, clock)
        places: dict[int, int] = {}
        first: dict[int, float] = {}
        outcomes: dict[int, Outcome] = {}
        begin_s, sent = clock(), 0
        while sent < len(trace) or engine.has_work:
            if not engine.has_work:
                clock.advance_to(begin_s + trace[sent].arrival_s)
            now_s = clock() - begin_s
            while sent < len(trace) and trace[sent].arrival_s <= now_s:
                request = trace[sent]
                block = BLOCK_LENGTH if request.mode is Mode.SELF_SPECULATION else None
                options = GenerationOptions(
                    mode=request.mode or Mode.AR, max_new_tokens=request.output_tokens, block_length=block, ignore_eos=True
                )
                places[engine.submit(texts[sent], options, stream_text=False)] = sent
                sent += 1
            events = engine.step()
            now_s = clock() - begin_s
            for reported in events:
                place = places[reported.request]
                if reported.event.token_ids:
                    first.setdefault(place, now_s)
                if reported.event.result is not None:
                    new_tokens = len(reported.event.result.token_ids)
                    outcomes[place] = Outcome(trace[place].arrival_s, first[place], now_s, new_tokens)
            clock.pause()
        self.stats = engine.stats()
        return [outcomes[place] for place in range(len(trace))]


def requests_at_once(texts: Sequence[list[int]], mode: Mode, category: str, output_tokens: int = 64) -> list[TraceRequest]:
    return [
        TraceRequest(arrival_s=0.0, prompt_tokens=len(text), output_tokens=output_tokens, category=category, mode=mode)
        for text in texts
    ]


def calibrate_loop(real: Real, texts: Prompts) -> tuple[dict[str, AcceptanceProfile], LoopCost]:
    """Acceptance of every category, and time of the loop outside of engine runs, on requests of its own."""
    acceptance, rows, outside_ms = {}, [], []
    for category, own in texts.items():
        for mode in (Mode.AR, Mode.SELF_SPECULATION):
            real.run(requests_at_once(own, mode, category), own)
            stats = real.stats
            rows.append([stats["engine_runs"], sum(stats["request_runs"].values())])
            outside_ms.append((stats["step_s"] - stats["engine_s"]) * 1e3)
        cycles = {int(accepted): count for accepted, count in stats["accepted"].items()}
        acceptance[category] = AcceptanceProfile.from_histogram(cycles, BLOCK_LENGTH)
    counts, times = np.array(rows, float), np.array(outside_ms)
    run_ms, row_ms = np.linalg.lstsq(counts, times, rcond=None)[0].tolist()
    if min(run_ms, row_ms) < 0:
        # Neither may be negative; then one of them tells it all.
        run_ms, row_ms = (times.sum() / counts[:, 0].sum(), 0.0) if row_ms < 0 else (0.0, times.sum() / counts[:, 1].sum())
    return acceptance, LoopCost(float(run_ms), float(row_ms))


def joined(texts: Prompts, count: int) -> Prompts:
    """`count` long prompts of every category, each of several of its prompts. Drafts do far worse on these."""
    generator = np.random.default_rng(4)
    found: Prompts = {}
    for category, own in sorted(texts.items()):
        for _ in range(count):
            parts = [own[int(pick)] for pick in generator.integers(len(own), size=NUM_PARTS)]
            prompt = [token for part in parts for token in part][: MAX_SEQ_LEN - 128]
            found.setdefault(f"long {category}", []).append(prompt)
    return found


def traces(texts: Prompts, deployment: Deployment, count: int) -> dict[str, tuple[list[TraceRequest], list[list[int]]]]:
    """Name -> requests and their texts, at rates that take up a part of the capacity the simulation predicts."""
    generator = np.random.default_rng(3)

    def drawn(texts: Prompts, modes: Sequence[Mode]) -> tuple[list[TraceRequest], list[list[int]]]:
        requests, own, names = [], [], sorted(texts)
        for place in range(count):
            category = names[int(generator.integers(len(names)))]
            own.append(texts[category][int(generator.integers(len(texts[category])))])
            requests += requests_at_once(own[-1:], modes[place % len(modes)], category, int(generator.integers(32, 97)))
        return requests, own

    both = (Mode.AR, Mode.SELF_SPECULATION)
    found = {}
    for name, kind in (("steady", texts), ("bursty", texts), ("long prompts", joined(texts, count)), ("all at once", texts)):
        requests, own = drawn(kind, both)
        rate = UTILIZATION * summarize(simulate(requests, deployment))["requests_per_second"]
        arrivals = [due.arrival_s for due in poisson_trace(rate, count, 1, 1, seed=5)]
        if name == "bursty":
            size = 2 * MAX_BATCH_SIZE
            arrivals = [place // size * size / rate for place in range(count)]
        elif name == "all at once":
            arrivals = [0.0] * count
        timed = [dataclasses.replace(request, arrival_s=due) for request, due in zip(requests, arrivals, strict=True)]
        found[name] = timed, own
    return found


def b200_form(path: Path, console: Console) -> dict[str, Any]:
    """Best fixed block length by concurrency with third-party step times, over several costs of a loop; and the data sheet."""
    lines = read_measurements(path)
    times = [time for line in lines for time in line]
    fitted = LatencyModel.fit("B200, third-party", times)
    roles = {**fitted.roles, Role.DECODE: fitted.roles[Role.VERIFY], Role.PREFILL: fitted.roles[Role.VERIFY]}
    latency = LatencyModel(fitted.device, False, roles)
    chosen: dict[str, dict[int, int]] = {}
    for name, (cost, tokens) in B200_CASES.items():
        chosen[name] = {}
        for concurrency in PUBLISHED_PAIRS:
            trace = [
                TraceRequest(arrival_s=0.0, prompt_tokens=B200_PROMPT, output_tokens=B200_OUTPUT) for _ in range(concurrency)
            ]
            speeds = {}
            for length in PUBLISHED_TOKENS:
                deployment = Deployment(
                    latency=latency,
                    limits=Limits(128, 4096, 32, 512),
                    acceptance={"all": AcceptanceProfile.from_means(tokens)},
                    mode=Mode.SELF_SPECULATION,
                    block_length=length,
                    loop_cost=cost,
                )
                speeds[length] = summarize(simulate(trace, deployment))["tokens_per_second"]
            chosen[name][concurrency] = max(speeds, key=speeds.__getitem__)
    table = Table("best block length at concurrency", *map(str, PUBLISHED_PAIRS))
    for name, by_concurrency in {**chosen, "served with": PUBLISHED_PAIRS}.items():
        table.add_row(name, *map(str, by_concurrency.values()))
    console.print(table)
    predicted = predicted_latency("b200", full_size_config("nemotron-labs-diffusion-8b"), Precision.BF16)
    errors = [predicted.ms(time.step) / time.ms - 1 for time in times]
    spread = {"median": float(np.median(np.abs(errors))), "lowest": min(errors), "highest": max(errors)}
    console.print(f"data sheet against {len(times)} measured B200 steps: {spread}")
    return {"chosen": chosen, "published": PUBLISHED_PAIRS, "data_sheet_relative_error": spread}


def compare(name: str, real: dict[str, Any], simulated: dict[str, Any], table: Table) -> dict[str, float]:
    """Relative errors of the simulation; adds rows to the table."""
    figures = {
        "tokens/s": (real["tokens_per_second"], simulated["tokens_per_second"]),
        **{
            f"{label} {percent} ms": (real[key][percent], simulated[key][percent])
            for key, label in (("total_ms", "total"), ("time_to_first_token_ms", "first token"))
            for percent in ("p50", "p99")
        },
    }
    errors = {figure: simulation / measured - 1 for figure, (measured, simulation) in figures.items()}
    for figure, (measured, simulation) in figures.items():
        table.add_row(name, figure, f"{measured:.1f}", f"{simulation:.1f}", f"{errors[figure]:+.1%}")
    return errors


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-requests", type=int, default=300)
    parser.add_argument("--num-threads", type=int, default=2)
    parser.add_argument("--measurements", type=Path, help="CSV of step times of a B200")
    arguments = parser.parse_args()
    console = Console()
    form = b200_form(arguments.measurements, console) if arguments.measurements else None
    errors: dict[str, dict[str, float]] = {}
    table = Table("trace", "figure", "engine", "simulation", "error")
    with tempfile.TemporaryDirectory() as folder:
        build(
            "nemodiff-tiny", Path(folder) / "b", max_seq_len=MAX_SEQ_LEN, block_length=BLOCK_LENGTH,
            prefill_chunk=PREFILL_CHUNK, max_batch_size=MAX_BATCH_SIZE,
        )  # fmt: skip
        bundle = Bundle.open(Path(folder) / "b")
        session = OnnxRuntimeSession.open(bundle, arguments.num_threads)
        tokenizer = Tokenizer.from_dir(bundle.tokenizer_dir)
        pace = MachinePace(session, CALIBRATION_SHARE, CALIBRATION_ROUNDS)
        real = Real(session, tokenizer, pace)
        own = prompts(tokenizer, CALIBRATION_SEED, 200)
        own |= joined(own, 16)
        calibrate_loop(real, {category: texts[:2] for category, texts in own.items()})
        acceptance, loop_cost = calibrate_loop(real, own)
        console.print(f"loop: {loop_cost.run_ms:.3f} ms a run, {loop_cost.row_ms:.3f} ms a request in it")
        deployment = Deployment(
            latency=pace.latency(), limits=session.limits, acceptance=acceptance, block_length=BLOCK_LENGTH,
            engine=NO_REUSE, loop_cost=loop_cost,
        )  # fmt: skip
        num_simulated, seconds = 0, 0.0
        for name, (trace, texts) in traces(prompts(tokenizer, TRACE_SEED, 400), deployment, arguments.num_requests).items():
            outcomes = real.run(trace, texts)
            begin = time.perf_counter()
            simulated = simulate(trace, dataclasses.replace(deployment, latency=pace.latency()))
            seconds, num_simulated = seconds + time.perf_counter() - begin, num_simulated + len(trace)
            errors[name] = compare(name, summarize(outcomes), summarize(simulated), table)
    console.print(table)
    targets = {
        "throughput_error": Target(max(abs(error["tokens/s"]) for error in errors.values()), at_most=0.10),
        "total_p99_error": Target(max(abs(error["total p99 ms"]) for error in errors.values()), at_most=0.20),
    }
    for name, target in targets.items():
        console.print(f"{name}: {target.value:.3g} ({'met' if target.is_met else 'MISSED'})")
    console.print(f"{num_simulated / seconds:.0f} requests simulated a second")
    result = {
        "benchmark": "simulator",
        "hardware": hardware(arguments.num_threads),
        "versions": versions(),
        "relative_error": errors,
        "requests_simulated_per_second": num_simulated / seconds,
        "loop_cost": dataclasses.asdict(loop_cost),
        "b200": form,
        "targets": {name: target.to_dict() for name, target in targets.items()},
    }
    print(json.dumps(result))
    sys.exit(0 if all(target.is_met for target in targets.values()) else 1)


if __name__ == "__main__":
    main()

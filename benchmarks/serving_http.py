"""nemodiff-tiny behind `nemodiff serve`: right answers under load, what the server costs, and latency as the load rises.

First 64 official clients of the API stream 2,000 requests of all modes, a tenth of them cancelled, a twentieth flawed; every
answer is compared with this process. Then 8 streams are compared with the same requests in an engine loop without a server, in
turns. Last, requests arrive at random at rising rates. Server, engine and clients share this machine's processors, so the
overhead includes the clients; a client over bare HTTP, which does as little as it can, stands beside the official one. Prints a
table, writes a plot; the last line is one JSON object, and the exit code is 1 when a target is missed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bundles import build
from http_clients import NAMES, BareClient, OpenAIClient
from load_generator import Call, Client, Mix, Outcome, make_calls, run_closed, run_open
from load_report import Latency, expected_answers, judge, plot_load
from measure import Target, hardware, median_ratio, versions
from rich.console import Console
from rich.table import Table
from serve_process import ServeProcess

from nemodiff_trt.bundle import Bundle
from nemodiff_trt.runtime.engine import EngineOptions, TriModeEngine
from nemodiff_trt.runtime.open_session import open_session
from nemodiff_trt.runtime.options import GenerationOptions
from nemodiff_trt.tokenizer import Tokenizer

SEED = 7_000_003
SLOTS = 32
STREAMS = 8
CLIENTS = ("bare", "openai")


class Setup:
    """A server, and engines of this process on the same bundle."""

    def __init__(self, bundle_dir: Path, server: ServeProcess, num_threads: int) -> None:
        self.server = server
        bundle = Bundle.open(bundle_dir)
        self.build_key = bundle.manifest.build_key
        self._session = open_session(bundle, num_threads)
        self._tokenizer = Tokenizer.from_dir(bundle.tokenizer_dir)

    def engine(self) -> TriModeEngine:
        return TriModeEngine(self._session, self._tokenizer, EngineOptions(prefix_rows=0, max_waiting=None))

    def in_process(self, calls: list[Call]) -> float:
        """Tokens per second of an engine loop that always has 8 requests, text streamed as a server would."""
        engine, waiting, num_tokens = self.engine(), iter(calls), 0

        def submit() -> None:
            for call in waiting:
                engine.submit(call.prompt, GenerationOptions().changed(**call.options))
                return

        begin = time.perf_counter()
        for _ in range(STREAMS):
            submit()
        while engine.has_work:
            for reported in engine.step():
                num_tokens += len(reported.event.token_ids)
                if reported.event.result is not None:
                    submit()
        return num_tokens / (time.perf_counter() - begin)

    def served(self, kind: str, calls: list[Call], concurrency: int | None) -> list[Outcome]:
        """Outcomes of calls of which `concurrency` are in flight, or that come at their times if that is None."""

        async def main() -> list[Outcome]:
            official = OpenAIClient(self.server.url)
            client: Client = official if kind == "openai" else BareClient(self.server.url)
            try:
                return await (run_open(client, calls) if concurrency is None else run_closed(client, calls, concurrency))
            finally:
                await official.close()

        return asyncio.run(main())

    def leaked_slots(self) -> float:
        """Slots that nobody gave back a while after the last request."""
        for _ in range(50):
            leaked = SLOTS - self.server.metric("nemodiff_free_slots")
            if not leaked:
                break
            time.sleep(0.1)
        return leaked


def crowd(setup: Setup, num_calls: int, concurrency: int) -> dict[str, Any]:
    """What became of a mixed load, and the server's memory: after a tenth of it, when all buffers are there, and at the end."""
    calls = make_calls(Mix(cancelled=0.1, flawed=0.05), num_calls, SEED)
    answers = expected_answers(setup.engine(), calls)
    first = num_calls // 10
    outcomes = setup.served("openai", calls[:first], concurrency)
    before_mb = setup.server.resident_mb()
    begin = time.perf_counter()
    outcomes += setup.served("openai", calls[first:], concurrency)
    seconds = time.perf_counter() - begin
    return {
        "calls": num_calls,
        "concurrency": concurrency,
        **judge(outcomes, answers, NAMES).to_dict(),
        "requests_per_second": (num_calls - first) / seconds,
        "resident_mb": [before_mb, setup.server.resident_mb()],
        "leaked_slots": setup.leaked_slots(),
    }


def overhead(setup: Setup, wish: str, num_calls: int, num_repeats: int) -> dict[str, Any]:
    """Tokens per second at 8 streams of one kind of request, in process and through the server, in turns.

    Raises:
        RuntimeError: the server gives other answers.
    """
    wishes = {wish: {"mode": wish.partition(" ")[0], **({"block_length": 8} if "B=8" in wish else {})}}
    calls = make_calls(Mix(wishes=wishes, max_new_tokens=(64, 64), num_problems=(1, 1)), num_calls, SEED)
    answers = expected_answers(setup.engine(), calls)
    speeds: dict[str, list[float]] = {"in_process": [], **{kind: [] for kind in CLIENTS}}
    for repeat in range(1 + num_repeats):
        found = {"in_process": setup.in_process(calls)}
        for kind in CLIENTS:
            outcomes = setup.served(kind, calls, STREAMS)
            verdict = judge(outcomes, answers, NAMES)
            if verdict.wrong:
                raise RuntimeError(f"{kind} gets other answers: {verdict.to_dict()}")
            found[kind] = Latency.of(outcomes).tokens_per_second
        if repeat:
            for name, speed in found.items():
                speeds[name].append(speed)
    return {
        "tokens_per_second": {name: sorted(values)[len(values) // 2] for name, values in speeds.items()},
        "share_of_in_process": {kind: median_ratio(speeds[kind], speeds["in_process"]) for kind in CLIENTS},
    }


def rising_load(setup: Setup, rates: list[float], seconds: float) -> list[Latency]:
    """Latency of a mix of all modes, a tenth of it cancelled, at each rate of arrivals.

    Raises:
        RuntimeError: an answer is wrong.
    """
    levels = []
    for rate in rates:
        calls = make_calls(Mix(cancelled=0.1), max(int(rate * seconds), 10), SEED + 1, rate)
        outcomes = setup.served("openai", calls, None)
        verdict = judge(outcomes, expected_answers(setup.engine(), calls), NAMES)
        if verdict.wrong:
            raise RuntimeError(f"other answers at {rate} requests/s: {verdict.to_dict()}")
        levels.append(Latency.of(outcomes, rate))
    return levels


def soak(setup: Setup, seconds: float) -> list[float]:
    """MB the server holds after each of ten equal parts of a time under load."""
    held = []
    for part in range(10):
        until = time.monotonic() + seconds / 10
        while time.monotonic() < until:
            setup.served("openai", make_calls(Mix(cancelled=0.1, flawed=0.05), 128, SEED + 2 + part), 64)
        held.append(setup.server.resident_mb())
    return held


def overview(levels: list[Latency]) -> Table:
    table = Table("requests/s", "answered", "tokens/s", "first token p50", "p99", "between pieces p50", "p99", "whole p99")
    for level in levels:
        shown = (level.first_token_ms, level.between_pieces_ms)
        values = [part.get(share, float("nan")) for part in shown for share in ("p50", "p99")]
        cells = [f"{value:.0f} ms" for value in (*values, level.whole_ms.get("p99", float("nan")))]
        table.add_row(f"{level.rate:g}", str(level.answered), f"{level.tokens_per_second:.0f}", *cells)
    return table


def targets_of(crowded: dict[str, Any], costs: dict[str, dict[str, Any]], held: list[float]) -> dict[str, Target]:
    targets = {
        "wrong answers under load": Target(crowded["wrong"], at_most=0),
        "leaked slots": Target(crowded["leaked_slots"], at_most=0),
    }
    for wish, cost in costs.items():
        name = f"share of in-process tokens/s at {STREAMS} streams, {wish}"
        targets[name] = Target(cost["share_of_in_process"]["bare"], at_least=0.85)
    if held:
        targets["memory after over before the soak"] = Target(held[-1] / held[1], at_most=1.05)
    return targets


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", default="nemodiff-tiny")
    parser.add_argument("--num-requests", type=int, default=2000, help="of the load that is compared")
    parser.add_argument("--concurrency", type=int, default=64)
    parser.add_argument("--num-calls", type=int, default=48, help="of one turn at 8 streams")
    parser.add_argument("--num-repeats", type=int, default=3)
    parser.add_argument("--num-threads", type=int, default=1, help="CPU threads of an engine run")
    parser.add_argument("--rates", type=float, nargs="+", default=[1, 2, 4, 8, 12, 16])
    parser.add_argument("--level-seconds", type=float, default=15.0)
    parser.add_argument("--soak-seconds", type=float, default=0.0)
    parser.add_argument("--plot", type=Path, default=Path("serving_http.png"))
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    console = Console()
    wishes = ["ar", "self_speculation B=8", "self_speculation"]
    with tempfile.TemporaryDirectory() as folder:
        bundle_dir = Path(folder) / "tiny.bundle"
        build(arguments.checkpoint, bundle_dir, max_seq_len=1024, block_length=32, max_batch_size=SLOTS)
        options = ("--num-threads", str(arguments.num_threads), "--max-waiting", "4096")
        with ServeProcess(bundle_dir, *options) as server:
            setup = Setup(bundle_dir, server, arguments.num_threads)
            crowded = crowd(setup, arguments.num_requests, arguments.concurrency)
            costs = {wish: overhead(setup, wish, arguments.num_calls, arguments.num_repeats) for wish in wishes}
            levels = rising_load(setup, arguments.rates, arguments.level_seconds)
            held = soak(setup, arguments.soak_seconds) if arguments.soak_seconds else []
    plot_load(levels, arguments.plot, "nemodiff-tiny behind nemodiff serve, all modes, official client")
    targets = targets_of(crowded, costs, held)
    console.print(overview(levels))
    for name, target in targets.items():
        console.print(f"{name}: {target.value:.3g} ({'met' if target.is_met else 'MISSED'})")
    summary = {
        "benchmark": "serving_http",
        "build_key": setup.build_key,
        "hardware": hardware(arguments.num_threads),
        "versions": versions(),
        "crowd": crowded,
        "streams": costs,
        "levels": [level.to_dict() for level in levels],
        "soak_mb": held,
        "targets": {name: target.to_dict() for name, target in targets.items()},
    }
    print(json.dumps(summary, allow_nan=False))
    sys.exit(0 if all(target.is_met for target in targets.values()) else 1)


if __name__ == "__main__":
    main()

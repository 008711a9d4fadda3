"""Latency and throughput of nemodiff-tiny behind the real Triton Inference Server, against the engine loop of one process.

Streams of 8 clients are compared with the same requests in an engine loop without a server, in turns; answers are compared
first. Then requests arrive at random at rising rates, and percentiles of the time to the first token and between pieces are
taken. Server, engine and load generator share this machine's processors, so the overhead includes the clients. Prints a table,
writes a plot; the last line is one JSON object, and the exit code is 1 when a target is missed.
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
from load_generator import Call, Mix, Outcome, make_calls, run_closed, run_open
from load_report import Latency, expected_answers, judge, plot_load
from measure import Target, hardware, median_ratio, versions
from rich.console import Console
from rich.table import Table
from triton_clients import NAMES, GrpcClient, HttpClient
from triton_server import DEFAULT_ENVIRONMENT, TritonServer, is_available, make_repository

from nemodiff_trt.bundle import Bundle
from nemodiff_trt.runtime.engine import EngineOptions, TriModeEngine
from nemodiff_trt.runtime.open_session import open_session
from nemodiff_trt.runtime.options import GenerationOptions
from nemodiff_trt.tokenizer import Tokenizer

SEED = 7_000_003
STREAMS = 8
CLIENTS = {"grpc": GrpcClient, "http": HttpClient}


class Setup:
    """A bundle, an engine of this process on it, and a server of it, with the same limits."""

    def __init__(self, bundle_dir: Path, server: TritonServer, num_threads: int) -> None:
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

    def served(self, kind: str, calls: list[Call], is_open: bool = False) -> list[Outcome]:
        async def main() -> list[Outcome]:
            client = CLIENTS[kind](self.server.grpc if kind == "grpc" else self.server.http, "nemodiff")
            try:
                return await (run_open(client, calls) if is_open else run_closed(client, calls, STREAMS))
            finally:
                await client.close()

        return asyncio.run(main())


def overhead(setup: Setup, wish: str, num_calls: int, num_repeats: int) -> dict[str, Any]:
    """Tokens per second at 8 streams of one kind of request, in process and through both protocols, in turns.

    Raises:
        RuntimeError: the server gives other answers.
    """
    wishes = {wish: {"mode": wish.partition(" ")[0], **({"block_length": 8} if "B=8" in wish else {})}}
    calls = make_calls(Mix(wishes=wishes, max_new_tokens=(64, 64), num_problems=(1, 1)), num_calls, SEED)
    answers = expected_answers(setup.engine(), calls)
    speeds: dict[str, list[float]] = {"in_process": [], "grpc": [], "http": []}
    for repeat in range(1 + num_repeats):
        found = {"in_process": setup.in_process(calls)}
        for kind in CLIENTS:
            outcomes = setup.served(kind, calls)
            verdict = judge(outcomes, answers, NAMES)
            if verdict.wrong:
                raise RuntimeError(f"{kind} gives other answers: {verdict.to_dict()}")
            found[kind] = Latency.of(outcomes).tokens_per_second
        if repeat:
            for name, speed in found.items():
                speeds[name].append(speed)
    return {
        "tokens_per_second": {name: sorted(values)[len(values) // 2] for name, values in speeds.items()},
        "share_of_in_process": {kind: median_ratio(speeds[kind], speeds["in_process"]) for kind in CLIENTS},
    }


def rising_load(setup: Setup, rates: list[float], seconds: float) -> list[Latency]:
    """Latency of a mix of all modes, tenths of it cancelled, at each rate of arrivals.

    Raises:
        RuntimeError: an answer is wrong.
    """
    levels = []
    for rate in rates:
        calls = make_calls(Mix(cancelled=0.1, flawed=0.02), max(int(rate * seconds), 10), SEED + 1, rate)
        answers = expected_answers(setup.engine(), calls)
        outcomes = setup.served("grpc", calls, is_open=True)
        verdict = judge(outcomes, answers, NAMES)
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
            setup.served("grpc", make_calls(Mix(cancelled=0.1, flawed=0.05), 64, SEED + 2 + part))
        held.append(setup.server.memory_bytes() / 1e6)
    return held


def overview(levels: list[Latency]) -> Table:
    table = Table("requests/s", "answered", "tokens/s", "first token p50", "p99", "between pieces p50", "p99", "whole p99")
    for level in levels:
        shown = (level.first_token_ms, level.between_pieces_ms)
        values = [part.get(share, float("nan")) for part in shown for share in ("p50", "p99")]
        cells = [f"{value:.0f} ms" for value in (*values, level.whole_ms.get("p99", float("nan")))]
        table.add_row(f"{level.rate:g}", str(level.answered), f"{level.tokens_per_second:.0f}", *cells)
    return table


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", type=Path, default=DEFAULT_ENVIRONMENT, help="made by `make triton-env`")
    parser.add_argument("--num-calls", type=int, default=48)
    parser.add_argument("--num-repeats", type=int, default=3)
    parser.add_argument("--num-threads", type=int, default=1, help="CPU threads of an engine run")
    parser.add_argument("--rates", type=float, nargs="+", default=[2, 4, 8, 16, 32, 48])
    parser.add_argument("--level-seconds", type=float, default=10.0)
    parser.add_argument("--soak-seconds", type=float, default=0.0)
    parser.add_argument("--plot", type=Path, default=Path("serving_triton.png"))
    arguments = parser.parse_args()
    if not is_available(arguments.env):
        parser.error(f"{arguments.env} has no server: run `make triton-env`")
    return arguments


def main() -> None:
    arguments = parse_arguments()
    console = Console()
    wishes = ["ar", "self_speculation B=8", "self_speculation"]
    with tempfile.TemporaryDirectory() as folder:
        build("nemodiff-tiny", Path(folder) / "bundle", max_seq_len=1024, block_length=32, max_batch_size=32)
        options = ("--num-threads", arguments.num_threads, "--prefix-rows", 0, "--link")
        repository = make_repository(Path(folder) / "bundle", Path(folder) / "repository", *options)
        with TritonServer(repository, arguments.env) as server:
            setup = Setup(Path(folder) / "bundle", server, arguments.num_threads)
            found = {wish: overhead(setup, wish, arguments.num_calls, arguments.num_repeats) for wish in wishes}
            levels = rising_load(setup, arguments.rates, arguments.level_seconds)
            held = soak(setup, arguments.soak_seconds) if arguments.soak_seconds else []
            # Gauges are brought up to date once a second.
            time.sleep(2)
            leaked = 32 - server.gauge("free_slots")
    plot_load(levels, arguments.plot, "nemodiff-tiny behind Triton, all modes, gRPC")
    targets = {
        f"{kind} share of in-process tokens/s at {STREAMS} streams, {wish}": Target(
            result["share_of_in_process"][kind], at_least=0.85
        )
        for wish, result in found.items()
        for kind in CLIENTS
    }
    targets["leaked_slots"] = Target(leaked, at_most=0)
    if held:
        targets["memory_after_over_before_soak"] = Target(held[-1] / held[1], at_most=1.05)
    console.print(overview(levels))
    for name, target in targets.items():
        console.print(f"{name}: {target.value:.3g} ({'met' if target.is_met else 'MISSED'})")
    print(
        json.dumps(
            {
                "benchmark": "serving_triton",
                "build_key": setup.build_key,
                "hardware": hardware(arguments.num_threads),
                "versions": versions(),
                "outputs_equal": True,
                "streams": STREAMS,
                "at_streams": found,
                "rising_load": [level.to_dict() for level in levels],
                "soak_mb": held,
                "targets": {name: target.to_dict() for name, target in targets.items()},
            }
        )
    )
    sys.exit(0 if all(target.is_met for target in targets.values()) else 1)


if __name__ == "__main__":
    main()

"""The measurements of docs/benchmarks.md: nemodiff-tiny on this machine's CPU, in every mode, beside its baselines.

One bundle is built. All cases answer the same prompts and lossless ones are compared with ar before anything is timed; cases
take turns. Every number is in the file of --json; the last line is one JSON object with the main ones, and the exit code is 1
when a target is missed.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from bundles import build
from measure import commit
from page import render_page
from promises import promises
from rich.console import Console
from step_times import capacity_sessions, capacity_table, step_table

from nemodiff_trt.bundle import Bundle
from nemodiff_trt.checkpoint import Checkpoint, resolve_checkpoint
from nemodiff_trt.runtime.bench.lookup_verdict import verdict_line
from nemodiff_trt.runtime.bench.reference_model import ReferenceModel
from nemodiff_trt.runtime.bench.report import render
from nemodiff_trt.runtime.bench.result_file import describe_run
from nemodiff_trt.runtime.bench.run import Bench
from nemodiff_trt.runtime.bench.settings import BASELINES, BenchSettings
from nemodiff_trt.runtime.bench.workload import generated_workload
from nemodiff_trt.runtime.cli.output import write_atomically
from nemodiff_trt.runtime.session_onnxruntime import OnnxRuntimeSession
from nemodiff_trt.tokenizer import Tokenizer

STEPS = [1, 2, 4, 8, 16, 32]
BATCHES = [1, 2, 4, 8]
PUBLISHED = Path(__file__).parent / "published_figures.md"


def integers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def floats(text: str) -> list[float]:
    return [float(part) for part in text.split(",")]


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", default="nemodiff-tiny", help="folder or name of a packaged checkpoint")
    parser.add_argument("--num-threads", type=int, default=2, help="of ONNX Runtime and of torch")
    parser.add_argument("--num-prompts", type=int, default=104, help="answered by every case")
    parser.add_argument("--num-timed-prompts", type=int, default=16, help="of them; at least two for each request at a time")
    parser.add_argument("--num-repeats", type=int, default=7, help="timed rounds of answers")
    parser.add_argument("--num-step-repeats", type=int, default=20, help="rounds of single steps")
    parser.add_argument("--max-new-tokens", type=int, default=128)
    # With a block of 32 behind it, the cache has 1,024 tokens, which is one of the capacities.
    parser.add_argument("--max-seq-len", type=int, default=992)
    parser.add_argument("--block-lengths", type=integers, default=[8, 16, 32])
    parser.add_argument("--thresholds", type=floats, default=[0.9, 0.998], help="of diffusion")
    parser.add_argument("--concurrency", type=integers, default=[1, 4, 16], help="requests at a time; 1 is among them")
    parser.add_argument("--capacities", type=integers, default=[256, 1024, 4096, 16384], help="of the cache, in tokens")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where the result goes")
    parser.add_argument("--page", type=Path, metavar="FILE", help="where it goes as Markdown")
    parser.add_argument("--report", type=Path, metavar="FILE", help="where it goes as HTML with plots")
    parser.add_argument("--from-json", type=Path, metavar="FILE", help="write pages of an earlier result, measure nothing")
    arguments = parser.parse_args()
    for name in ("json", "page", "report"):
        path = getattr(arguments, name)
        if path is not None and not path.parent.is_dir():
            parser.error(f"--{name}: {path.parent} is not a folder")
    if 1 not in arguments.concurrency:
        parser.error("--concurrency: 1 has to be among the values, the targets are about it")
    return arguments


def measure(arguments: argparse.Namespace, folder: Path, console: Console) -> dict[str, Any]:
    """All measurements, as plain values."""
    begin_s = time.perf_counter()
    measured_commit = commit(Path(__file__).parent)
    torch.set_num_threads(arguments.num_threads)
    settings = BenchSettings(
        block_lengths=tuple(arguments.block_lengths),
        thresholds=tuple(arguments.thresholds),
        concurrency=tuple(arguments.concurrency),
        max_new_tokens=arguments.max_new_tokens,
        num_repeats=arguments.num_repeats,
        num_timed_prompts=arguments.num_timed_prompts,
        baselines=BASELINES,
    )
    workload = generated_workload(arguments.num_prompts)
    reference = ReferenceModel(Checkpoint.open(resolve_checkpoint(arguments.checkpoint)))
    console.print("building")
    cost = build(
        arguments.checkpoint,
        folder / "main",
        max_seq_len=arguments.max_seq_len,
        block_length=max(arguments.block_lengths),
        max_batch_size=max(*arguments.concurrency, *BATCHES),
    )
    bundle = Bundle.open(folder / "main")
    session = OnnxRuntimeSession.open(bundle, arguments.num_threads)
    model = Bench(session, Tokenizer.from_dir(bundle.tokenizer_dir), reference)
    runs = model.run([workload], settings, console.print)
    console.print("single steps")
    steps = step_table(session, STEPS, BATCHES, arguments.num_step_repeats)
    sessions = capacity_sessions(session, arguments.checkpoint, folder, arguments.capacities, arguments.num_threads)
    capacities = capacity_table(sessions, arguments.num_step_repeats)
    bench = describe_run(bundle, [workload], settings, arguments.num_threads, runs, steps)
    seconds = time.perf_counter() - begin_s
    found = promises(bench, cost, capacities, seconds)
    return {
        "benchmark": "run",
        "commit": measured_commit,
        "checkpoint": arguments.checkpoint,
        "seconds": seconds,
        "build": asdict(cost),
        "bench": bench,
        "capacity_ms": capacities,
        "targets": {name: target.to_dict() for name, target in found.items()},
    }


def digest(result: dict[str, Any]) -> dict[str, Any]:
    """The main numbers, for the last line: a whole result is too long for a terminal."""
    bench = result["bench"]
    main_numbers = ("accuracy", "tokens_per_forward", "user_tokens_per_second", "speed_over_ar", "answers_unlike_ar")
    return {name: result[name] for name in ("benchmark", "commit", "checkpoint", "seconds", "build")} | {
        "hardware": bench["hardware"],
        "versions": bench["versions"],
        "alone": {run["case"]: {name: run[name] for name in main_numbers} for run in bench["runs"] if run["concurrency"] == 1},
        "categories_won_by_prompt_lookup": {each["block_length"]: each["lookup_wins"] for each in bench["lookup_verdicts"]},
        "targets": result["targets"],
    }


def main() -> None:
    arguments = parse_arguments()
    console = Console(stderr=True, highlight=False)
    if arguments.from_json is not None:
        result = json.loads(arguments.from_json.read_text(encoding="utf-8"))
    else:
        with tempfile.TemporaryDirectory() as folder:
            result = measure(arguments, Path(folder), console)
    if arguments.json is not None:
        write_atomically(arguments.json, json.dumps(result, allow_nan=False) + "\n")
    if arguments.page is not None:
        write_atomically(arguments.page, render_page(result, PUBLISHED.read_text(encoding="utf-8")))
    if arguments.report is not None:
        write_atomically(arguments.report, render(result["bench"]))
    for verdict in result["bench"]["lookup_verdicts"]:
        console.print(verdict_line(verdict))
    missed = [name for name, target in result["targets"].items() if not target["met"]]
    console.print(f"{result['seconds']:.0f} s; targets missed: {', '.join(missed) or 'none'}")
    print(json.dumps(digest(result), allow_nan=False))
    sys.exit(1 if missed else 0)


if __name__ == "__main__":
    main()

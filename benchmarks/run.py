"""Speed and memory of nemodiff-tiny on this machine's CPU, against `transformers` on the same weights and prompts.

Outputs are compared before anything is timed; ratios come from one run whose cases take turns. Prints tables; the last line is
one JSON object with every number, and the exit code is 1 when a target is missed.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from bundles import BuildCost, build
from decode_speed import AR, REFERENCE, DecodeSpeed, measure_decode_speed, options_of, speculative
from measure import Target, hardware, versions
from rich.console import Console
from rich.table import Table
from step_times import capacity_ratio, capacity_table, step_table

from nemodiff_trt.bundle import Bundle
from nemodiff_trt.checkpoint import Checkpoint, resolve_checkpoint
from nemodiff_trt.runtime.bench.reference_model import ReferenceModel
from nemodiff_trt.runtime.engine import EngineOptions
from nemodiff_trt.runtime.session_onnxruntime import OnnxRuntimeSession
from nemodiff_trt.runtime.tri_mode_lm import TriModeLM
from nemodiff_trt.tokenizer import Tokenizer
from nemodiff_trt.training.problems import held_out_problems

# A seed that no training run used; the problems are held out by their text anyway.
SEED = 5_000_011
STEPS = [1, 2, 4, 8, 16, 32]
BATCHES = [1, 2, 4, 8]


def integers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", default="nemodiff-tiny", help="folder or name of a packaged checkpoint")
    parser.add_argument("--num-threads", type=int, default=2, help="of ONNX Runtime and of torch")
    parser.add_argument("--num-prompts", type=int, default=16)
    parser.add_argument("--max-new-tokens", type=int, default=128)
    parser.add_argument("--max-seq-len", type=int, default=1024)
    parser.add_argument("--block-lengths", type=integers, default=[4, 8, 16, 32])
    parser.add_argument("--capacities", type=integers, default=[256, 1024, 4096, 16384], help="of the cache, in tokens")
    parser.add_argument("--num-repeats", type=int, default=7, help="rounds of whole answers")
    parser.add_argument("--num-step-repeats", type=int, default=60, help="rounds of single steps")
    return parser.parse_args()


def chat_prompts(tokenizer: Tokenizer, count: int) -> list[list[int]]:
    """Token ids of held-out problems, asked as in training."""
    return [
        tokenizer.encode(
            tokenizer.apply_chat_template([{"role": "user", "content": problem.prompt}], enable_thinking=problem.thinking)
        )
        for problem in held_out_problems(count, SEED)
    ]


def targets(cost: BuildCost, speed: DecodeSpeed, best: str, capacities: list[dict[str, Any]]) -> dict[str, Target]:
    """What this repository promises, and what was measured."""
    return {
        "ar_over_transformers": Target(speed.speed_over(AR, REFERENCE), at_least=3.0),
        "self_speculation_over_ar": Target(speed.speed_over(best, AR), at_least=1.3),
        "engine_share_of_decode_time": Target(min(speed.engine_share(name) for name in (AR, best)), at_least=0.85),
        # Equal but for noise; without the slice before attention it is a factor of 10 and more.
        "slowest_over_fastest_cache_capacity": Target(capacity_ratio(capacities), at_most=1.2),
        "build_seconds": Target(cost.seconds, at_most=60.0),
        "build_peak_gb": Target(cost.peak_bytes / 1e9, at_most=2.0),
    }


def step_overview(rows: list[dict[str, Any]], title: str, columns: str, lines: tuple[str, ...]) -> Table:
    """Times with one column for each value of `columns` and one line for each combination of `lines`."""
    heads = sorted({row[columns] for row in rows})
    table = Table(*lines, *(f"{columns} {head}" for head in heads), title=f"{title}, ms", title_justify="left")
    for key in dict.fromkeys(tuple(row[name] for name in lines) for row in rows):
        found = {row[columns]: row["ms"] for row in rows if tuple(row[name] for name in lines) == key}
        table.add_row(*map(str, key), *(f"{found[head]:.2f}" if head in found else "" for head in heads))
    return table


def speed_overview(speed: DecodeSpeed, names: list[str]) -> Table:
    table = Table(
        "batch 1", "tokens/s", "over ar", "tokens/forward", "accepted", "engine share", title="answers", title_justify="left"
    )
    table.add_row(REFERENCE, f"{speed.tokens_per_second(REFERENCE):.0f}", f"{speed.speed_over(REFERENCE, AR):.2f}")
    for name in names:
        found = speed.summary(name)
        accepted = "" if found["mean_accepted"] is None else f"{found['mean_accepted']:.2f}"
        table.add_row(
            name,
            f"{found['tokens_per_second']:.0f}",
            f"{speed.speed_over(name, AR):.2f}",
            f"{found['tokens_per_forward']:.2f}",
            accepted,
            f"{found['engine_share']:.1%}",
        )
    return table


def target_overview(found: dict[str, Target]) -> Table:
    table = Table("target", "measured", "wanted", "", title="targets", title_justify="left")
    for name, target in found.items():
        wanted = f">= {target.at_least:g}" if target.at_least is not None else f"<= {target.at_most:g}"
        table.add_row(name, f"{target.value:.3g}", wanted, "met" if target.is_met else "[bold red]missed[/]")
    return table


def run(arguments: argparse.Namespace, folder: Path, console: Console) -> dict[str, Any]:
    """All measurements; prints tables on the way and returns what the last line says."""
    torch.set_num_threads(arguments.num_threads)
    checkpoint = Checkpoint.open(resolve_checkpoint(arguments.checkpoint))
    longest = max(arguments.block_lengths)
    cost = build(arguments.checkpoint, folder / "main", max_seq_len=arguments.max_seq_len, block_length=longest)
    bundle = Bundle.open(folder / "main")
    session = OnnxRuntimeSession.open(bundle, arguments.num_threads)
    # Rounds repeat the same prompts: none of them may profit from the one before.
    model = TriModeLM(session, Tokenizer.from_dir(bundle.tokenizer_dir), EngineOptions(prefix_rows=0))
    prompts = chat_prompts(model.tokenizer, arguments.num_prompts)
    cases = options_of(arguments.block_lengths, arguments.max_new_tokens)
    speed = measure_decode_speed(model, ReferenceModel(checkpoint), prompts, cases, arguments.num_repeats)
    best = max((speculative(length) for length in arguments.block_lengths), key=lambda name: speed.speed_over(name, AR))
    console.print(speed_overview(speed, list(cases)))
    steps = step_table(session, STEPS, BATCHES, arguments.num_step_repeats)
    console.print(step_overview(steps, "one engine run", "step", ("role", "batch")))
    capacities = capacity_table(
        arguments.checkpoint, folder, arguments.capacities, longest, arguments.num_threads, arguments.num_step_repeats
    )
    console.print(step_overview(capacities, "one engine run at batch 1", "capacity", ("step", "used_tokens")))
    found = targets(cost, speed, best, capacities)
    console.print(target_overview(found))
    matrix_bytes = bundle.report()["packed_matrices"]["num_bytes"]
    decode_ms = next(row["ms"] for row in steps if row["step"] == 1 and row["batch"] == 1)
    return {
        "checkpoint": arguments.checkpoint,
        "build_key": bundle.manifest.build_key,
        "precision": str(bundle.manifest.precision),
        "hardware": hardware(arguments.num_threads),
        "versions": versions(),
        "outputs_equal": True,
        "num_prompts": len(prompts),
        "num_tokens": speed.num_tokens,
        "batch": 1,
        "transformers_tokens_per_second": speed.tokens_per_second(REFERENCE),
        "modes": {name: {**speed.summary(name), "over_ar": speed.speed_over(name, AR)} for name in cases},
        "best_block_length": cases[best].block_length,
        "step_ms": steps,
        "weight_gb_per_s_at_one_token": matrix_bytes / decode_ms / 1e6,
        "capacity_ms": capacities,
        "build": asdict(cost),
        "targets": {name: target.to_dict() for name, target in found.items()},
    }


def main() -> None:
    arguments = parse_arguments()
    with tempfile.TemporaryDirectory() as folder:
        summary = run(arguments, Path(folder), Console())
    print(json.dumps(summary))
    sys.exit(0 if all(target["met"] for target in summary["targets"].values()) else 1)


if __name__ == "__main__":
    main()

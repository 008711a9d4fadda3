"""What the modes are worth on nemodiff-tiny: exact answers, tokens per forward, acceptance with and without adapter, equality.

Builds two bundles (with and without the draft adapter), answers held-out problems in every mode, then compares self-speculation
with ar on prompts no training text resembles: random Unicode, almost nothing, and prompts that fill the context. Prints a
table; the last line is one JSON object.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import random
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from nemodiff_trt.runtime.answer import GenerationResult
from nemodiff_trt.runtime.evaluation import ModeScore, answer_problems, score
from nemodiff_trt.runtime.options import GenerationOptions
from nemodiff_trt.runtime.tri_mode_lm import TriModeLM
from nemodiff_trt.training.problems import Problem, held_out_problems

SEED = 9_000_001
NUM_ODD_PROMPTS = 200
DIFFUSION_THRESHOLDS = (0.8, 0.9, 0.95, 0.99, 0.998)
BLOCK_LENGTH, LONG_BLOCK_LENGTH = 16, 32


@dataclasses.dataclass(frozen=True)
class Run:
    """One row of the table."""

    title: str
    options: GenerationOptions
    batch_size: int = 1
    has_adapter: bool = True


def runs() -> tuple[Run, ...]:
    speculative = GenerationOptions(mode="self_speculation", block_length=BLOCK_LENGTH)
    long = dataclasses.replace(speculative, block_length=LONG_BLOCK_LENGTH)
    diffusion = [
        Run(
            f"diffusion B={BLOCK_LENGTH} t={threshold}",
            GenerationOptions(mode="diffusion", block_length=BLOCK_LENGTH, threshold=threshold),
        )
        for threshold in DIFFUSION_THRESHOLDS
    ]
    return (
        Run("ar", GenerationOptions(mode="ar")),
        Run(f"self_speculation B={BLOCK_LENGTH}", speculative),
        Run(f"self_speculation B={BLOCK_LENGTH} batch 8", speculative, batch_size=8),
        Run(f"self_speculation B={LONG_BLOCK_LENGTH}", long),
        Run(f"self_speculation B={LONG_BLOCK_LENGTH} no adapter", long, has_adapter=False),
        *diffusion,
    )


def build(output: Path, draft_adapter: str) -> TriModeLM:
    command = [sys.executable, "-m", "nemodiff_trt.build_engines", "--checkpoint", "nemodiff-tiny", "--target", "onnxruntime"]
    options = ["--draft-adapter", draft_adapter, "--max-seq-len", "512", "--output", str(output), "--json"]
    subprocess.run([*command, *options], check=True, stdout=subprocess.DEVNULL)
    return TriModeLM.from_bundle(output)


def answer(model: TriModeLM, problems: Sequence[Problem], run: Run) -> tuple[list[GenerationResult], float]:
    """Answers in batches of at most `run.batch_size`."""
    results: list[GenerationResult] = []
    seconds = 0.0
    for start in range(0, len(problems), run.batch_size):
        batch, batch_seconds = answer_problems(model, problems[start : start + run.batch_size], run.options)
        results += batch
        seconds += batch_seconds
    return results, seconds


def odd_prompts(model: TriModeLM, count: int, seed: int) -> list[str | list[int]]:
    """Random Unicode of every plane, prompts of one or two characters, and token ids that fill the context."""
    rng = random.Random(seed)
    limit = model.session.limits.max_seq_len
    planes = ((0x20, 0x7F), (0xA0, 0x24F), (0x370, 0x5FF), (0x3040, 0x9FFF), (0x1F300, 0x1FAFF))

    def text(length: int) -> str:
        return "".join(chr(rng.randint(*rng.choice(planes))) for _ in range(length))

    prompts: list[str | list[int]] = []
    for index in range(count):
        kind = index % 10
        if kind == 0:
            prompts.append([rng.randrange(101, model.session.model.vocab_size) for _ in range(limit - rng.randint(1, 40))])
        elif kind == 1:
            prompts.append(rng.choice((" ", "\n", "?", "a", ".", "\t\n", "0")))
        else:
            prompts.append(text(rng.randint(1, 60)))
    return prompts


def check_odd_prompts(model: TriModeLM, count: int) -> tuple[int, int]:
    """How many odd prompts self-speculation answers with ar's tokens, alone and in batches of 8, of how many."""
    prompts = odd_prompts(model, count, SEED)
    common: dict[str, Any] = {"max_new_tokens": 64}
    wanted = [result.token_ids for result in model.generate(prompts, mode="ar", **common)]
    alone = [model.generate([p], mode="self_speculation", block_length=BLOCK_LENGTH, **common)[0].token_ids for p in prompts]
    batched = [
        result.token_ids
        for result in model.generate(prompts, mode="self_speculation", block_length=LONG_BLOCK_LENGTH, **common)
    ]
    return sum(a == b == c for a, b, c in zip(wanted, alone, batched, strict=True)), len(prompts)


def table_of(scores: dict[str, ModeScore], same: dict[str, bool | None]) -> Table:
    table = Table(title=f"nemodiff-tiny, {next(iter(scores.values())).num_problems} held-out problems, CPU")
    for heading in ("run", "accuracy", "tokens/forward", "mean accepted", "tokens of ar"):
        table.add_column(heading, justify="left" if heading == "run" else "right")
    for title, scored in scores.items():
        accepted = "-" if scored.mean_accepted is None else f"{scored.mean_accepted:.2f}"
        equal = {None: "-", True: "yes", False: "NO"}[same[title]]
        table.add_row(title, f"{scored.accuracy:.1%}", f"{scored.tokens_per_forward:.2f}", accepted, equal)
    return table


def targets(scores: dict[str, ModeScore], same: dict[str, bool | None], odd: tuple[int, int]) -> dict[str, bool]:
    """What this repository promises, and whether it held."""
    ar = scores["ar"]
    speculative = scores[f"self_speculation B={BLOCK_LENGTH}"]
    long = scores[f"self_speculation B={LONG_BLOCK_LENGTH}"]
    plain = scores[f"self_speculation B={LONG_BLOCK_LENGTH} no adapter"]
    diffusion = [scores[f"diffusion B={BLOCK_LENGTH} t={threshold}"] for threshold in DIFFUSION_THRESHOLDS]
    return {
        "ar_accuracy_at_least_90_percent": ar.accuracy >= 0.9,
        "self_speculation_equals_ar": all(is_same is not False for is_same in same.values()),
        "self_speculation_tokens_per_forward_at_least_3.5": speculative.tokens_per_forward >= 3.5,
        "adapter_accepts_10_percent_more": (long.mean_accepted or 0) >= 1.1 * (plain.mean_accepted or 0),
        "diffusion_within_5_points_at_2.5_tokens_per_forward": any(
            ar.accuracy - d.accuracy <= 0.05 and d.tokens_per_forward >= 2.5 for d in diffusion
        ),
        "odd_prompts_lossless": odd[0] == odd[1],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--num-prompts", type=int, default=960)
    parser.add_argument("--num-odd-prompts", type=int, default=NUM_ODD_PROMPTS)
    arguments = parser.parse_args()
    console = Console()
    problems = held_out_problems(arguments.num_prompts, SEED)
    with tempfile.TemporaryDirectory() as folder:
        models = {True: build(Path(folder) / "tiny", "low_rank"), False: build(Path(folder) / "plain", "none")}
        scores: dict[str, ModeScore] = {}
        same: dict[str, bool | None] = {}
        reference: list[tuple[int, ...]] = []
        for run in runs():
            results, seconds = answer(models[run.has_adapter], problems, run)
            scores[run.title] = score(models[True].tokenizer, problems, results, seconds)
            tokens = [result.token_ids for result in results]
            reference = reference or tokens
            same[run.title] = tokens == reference if run.options.mode == "self_speculation" else None
        odd = check_odd_prompts(models[True], arguments.num_odd_prompts)
    console.print(table_of(scores, same))
    console.print(f"self_speculation gave the tokens of ar on {odd[0]} of {odd[1]} odd prompts")
    met = targets(scores, same, odd)
    summary = {
        "scores": {title: dataclasses.asdict(s) for title, s in scores.items()},
        "lossless_odd_prompts": odd,
        "targets": met,
    }
    print(json.dumps(summary))
    if not all(met.values()):
        sys.exit(1)


if __name__ == "__main__":
    main()

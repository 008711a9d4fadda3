"""Quadratic self-speculation, pruned drafting and leaves against linear self-speculation, on held-out prompts of nemodiff-tiny.

Builds bundles with and without the draft adapter (with logits as well, which leaves need), answers every prompt alone in every
way, and compares all answers with those of ar. Prints a table: tokens per forward, tokens computed for each emitted one,
tokens per second. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from nemodiff_trt.build_engines.compile import compile_bundle
from nemodiff_trt.options import AdapterForm, CompileOptions
from nemodiff_trt.runtime.options import GenerationOptions
from nemodiff_trt.runtime.tri_mode_lm import TriModeLM
from nemodiff_trt.training.problems import held_out_problems
from nemodiff_trt.vocabulary import Mode

SEED = 9_000_001
QUADRATIC_BLOCK = 16
BLOCK_LENGTHS = (8, QUADRATIC_BLOCK)
NUM_GROUPS = (1, 2, 3, 4)
NUM_LEAVES = (1, 2, 4)
# A pruned block may be longer than a full one within the same longest step.
LONG_BLOCK, LONG_GROUPS = 32, (1, 2)
GOAL = 1.4


@dataclass(frozen=True)
class Score:
    """Of one way to decode. Ratios are over all prompts; the first token of an answer comes from prefill and does not count."""

    num_tokens: int
    tokens_per_forward: float
    computed_per_token: float
    tokens_per_s: float
    equals_ar: int


def ways(with_logits: bool) -> Iterator[tuple[str, dict[str, Any]]]:
    for block_length in (*BLOCK_LENGTHS, LONG_BLOCK):
        linear = {"mode": Mode.SELF_SPECULATION, "block_length": block_length}
        quadratic = {"mode": Mode.QUADRATIC, "block_length": block_length}
        if with_logits:
            for leaves in NUM_LEAVES:
                yield f"linear B={block_length}, {leaves} leaves", {**linear, "num_leaves": leaves}
            continue
        yield f"linear B={block_length}", linear
        if block_length <= QUADRATIC_BLOCK:
            yield f"quadratic B={block_length}", quadratic
        for groups in NUM_GROUPS if block_length <= QUADRATIC_BLOCK else LONG_GROUPS:
            yield f"pruned B={block_length}, {groups} groups", {**quadratic, "draft_groups": groups}


def build(output: Path, adapter: AdapterForm, with_logits: bool, num_threads: int) -> TriModeLM:
    options = CompileOptions(
        checkpoint="nemodiff-tiny",
        output=output,
        modes=(Mode.AR, Mode.SELF_SPECULATION, Mode.QUADRATIC),
        max_seq_len=512,
        quadratic_block_length=QUADRATIC_BLOCK,
        draft_adapter=adapter,
        sampling=with_logits,
    )
    compile_bundle(options)
    return TriModeLM.from_bundle(output, num_threads=num_threads)


def run(model: TriModeLM, chats: list[Any], wanted: list[tuple[int, ...]] | None, **options: Any) -> tuple[Score, list[Any]]:
    """One after the other: what a batch would cost is another question."""
    chosen = GenerationOptions(**options)
    # Buffers are made and pages mapped before the clock starts.
    model.generate(chats[:2], chosen)
    begin = time.perf_counter()
    results = [model.generate([chat], chosen)[0] for chat in chats]
    seconds = time.perf_counter() - begin
    tokens = sum(result.stats.new_tokens - 1 for result in results)
    forwards = sum(result.stats.forward_passes for result in results)
    computed = sum(result.stats.step_tokens for result in results)
    answers = [result.token_ids for result in results]
    same = sum(a == b for a, b in zip(answers, wanted or answers, strict=True))
    score = Score(tokens, tokens / forwards, computed / tokens, tokens / seconds, same)
    print(options, score, file=sys.stderr, flush=True)
    return score, answers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=int, default=300)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    chats = [[{"role": "user", "content": problem.prompt}] for problem in held_out_problems(arguments.prompts, seed=SEED)]
    scores: dict[str, dict[str, Score]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for adapter in (AdapterForm.LOW_RANK, AdapterForm.NONE):
            found = scores["with adapter" if adapter is AdapterForm.LOW_RANK else "without adapter"] = {}
            wanted: list[tuple[int, ...]] | None = None
            for with_logits in (False, True):
                model = build(Path(folder) / f"{adapter}-{with_logits}", adapter, with_logits, arguments.threads)
                if wanted is None:
                    found["ar"], wanted = run(model, chats, None, mode=Mode.AR)
                for title, options in ways(with_logits):
                    found[title], _ = run(model, chats, wanted, **options)
    show(scores, len(chats))
    print(json.dumps(summary(scores, len(chats), arguments.threads)))


def show(scores: dict[str, dict[str, Score]], num_prompts: int) -> None:
    for setting, found in scores.items():
        table = Table(title=f"nemodiff-tiny {setting}, {num_prompts} held-out prompts, one at a time, ONNX Runtime")
        for heading in ("way", "tokens/forward", "computed/token", "tokens/s", "equal to ar"):
            table.add_column(heading, justify="left" if heading == "way" else "right")
        for title, score in found.items():
            cells = (f"{score.tokens_per_forward:.2f}", f"{score.computed_per_token:.2f}", f"{score.tokens_per_s:.0f}")
            table.add_row(title, *cells, f"{score.equals_ar}/{num_prompts}")
        Console().print(table)


def summary(scores: dict[str, dict[str, Score]], num_prompts: int, num_threads: int) -> dict[str, Any]:
    gains = {
        setting: {
            f"B={block}": round(
                found[f"quadratic B={block}"].tokens_per_forward / found[f"linear B={block}"].tokens_per_forward, 3
            )
            for block in BLOCK_LENGTHS
        }
        for setting, found in scores.items()
    }
    return {
        "benchmark": "quadratic",
        "num_prompts": num_prompts,
        "num_threads": num_threads,
        "cpus": len(os.sched_getaffinity(0)),
        "all_equal_ar": all(score.equals_ar == num_prompts for found in scores.values() for score in found.values()),
        "tokens_per_forward_over_linear": gains,
        "reaches_goal": all(gain >= GOAL for found in gains.values() for gain in found.values()),
        "scores": {
            setting: {title: {name: round(value, 3) for name, value in asdict(score).items()} for title, score in found.items()}
            for setting, found in scores.items()
        },
    }


if __name__ == "__main__":
    main()

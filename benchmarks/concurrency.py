"""How the engine loop of nemodiff-tiny scales with concurrent requests on this machine's CPU.

The same prompts are answered with at most 1, 2, 4, ... requests at a time, in mode ar and in self_speculation at several block
lengths. Answers are compared first; cases take turns. Then 64 requests at once measure what the loop itself costs, and a chat
of ten turns what prefix reuse saves. Prints a table; the last line is one JSON object, and the exit code is 1 when a target is
missed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bundles import build
from measure import Target, hardware, interleaved, median_ratio, versions
from rich.console import Console
from rich.table import Table

from nemodiff_trt.bundle import Bundle
from nemodiff_trt.runtime.engine import EngineOptions, TriModeEngine
from nemodiff_trt.runtime.options import GenerationOptions
from nemodiff_trt.runtime.session_onnxruntime import OnnxRuntimeSession
from nemodiff_trt.tokenizer import Tokenizer
from nemodiff_trt.training.problems import held_out_problems

SEED = 6_000_011
MANY = 64
Tokens = dict[int, tuple[int, ...]]


class Case:
    """One mode at one concurrency, and what its rounds measured."""

    def __init__(self, session: OnnxRuntimeSession, tokenizer: Tokenizer, options: GenerationOptions, concurrency: int) -> None:
        self.options = options
        self.concurrency = concurrency
        self.answers: Tokens = {}
        # Per round: share of the loop spent in engine runs, microseconds of the rest per request and step.
        self.engine_shares: list[float] = []
        self.loop_us: list[float] = []
        self._make = lambda: TriModeEngine(session, tokenizer, EngineOptions(max_active=concurrency, prefix_rows=0))

    def run(self, prompts: list[list[int]]) -> None:
        engine = self._make()
        # Equal beginnings are not the question here.
        engine_numbers = {engine.submit(prompt, self.options, stream_text=False): place for place, prompt in enumerate(prompts)}
        while engine.has_work:
            for reported in engine.step():
                if reported.event.result is not None:
                    self.answers[engine_numbers[reported.request]] = reported.event.result.token_ids
        stats = engine.stats()
        self.engine_shares.append(stats["engine_s"] / stats["step_s"])
        self.loop_us.append((stats["step_s"] - stats["engine_s"]) / sum(stats["request_runs"].values()) * 1e6)


def cases_of(
    session: OnnxRuntimeSession, tokenizer: Tokenizer, levels: list[int], block_lengths: list[int], max_new_tokens: int
) -> dict[tuple[str, int], Case]:
    modes = {"ar": GenerationOptions(mode="ar", max_new_tokens=max_new_tokens)}  # type: ignore[arg-type]
    for block_length in block_lengths:
        modes[f"self_speculation B={block_length}"] = GenerationOptions(
            mode="self_speculation",  # type: ignore[arg-type]
            max_new_tokens=max_new_tokens,
            block_length=block_length,
        )
    return {(name, level): Case(session, tokenizer, options, level) for name, options in modes.items() for level in levels}


def throughput(
    cases: dict[tuple[str, int], Case], prompts: list[list[int]], num_repeats: int
) -> tuple[dict[tuple[str, int], list[float]], int]:
    """Seconds of every round of every case, after all answers were compared, and the number of tokens of a round.

    Raises:
        RuntimeError: a case gives other tokens than ar alone.
    """
    for case in cases.values():
        case.run(prompts)
    wanted = cases["ar", 1].answers
    for name, case in cases.items():
        if case.answers != wanted:
            raise RuntimeError(f"{name} gives other tokens than ar one by one; its speed would mean nothing")

    def timed(case: Case) -> Callable[[], None]:
        return lambda: case.run(prompts)

    seconds = interleaved({key: timed(case) for key, case in cases.items()}, num_repeats)  # type: ignore[misc]
    return seconds, sum(map(len, wanted.values()))  # type: ignore[return-value]


def loop_cost(session: OnnxRuntimeSession, tokenizer: Tokenizer, prompts: list[list[int]]) -> float:
    """Microseconds the loop spends outside engine runs, for one request and one run, at 64 requests in mode ar."""
    case = Case(session, tokenizer, GenerationOptions(mode="ar", max_new_tokens=64, ignore_eos=True), MANY)  # type: ignore[arg-type]
    for _ in range(3):
        case.run(prompts)
    return min(case.loop_us)


def queued_threads(session: OnnxRuntimeSession, tokenizer: Tokenizer, prompt: list[int]) -> int:
    """Threads that 1,000 queued requests add."""
    engine, before = TriModeEngine(session, tokenizer, EngineOptions(max_active=1)), threading.active_count()
    for _ in range(1000):
        engine.submit(prompt, GenerationOptions(max_new_tokens=1))
    engine.step()
    return threading.active_count() - before


def chat_reuse(session: OnnxRuntimeSession, tokenizer: Tokenizer, num_turns: int = 10) -> dict[str, Any]:
    """Prompt tokens computed in a chat of ten turns, with and without kept rows; the answers must be equal."""
    answers, computed = [], []
    questions = [problem.prompt for problem in held_out_problems(num_turns, SEED + 1)]
    for prefix_rows in (0, 2):
        engine = TriModeEngine(session, tokenizer, EngineOptions(prefix_rows=prefix_rows))
        messages: list[dict[str, str]] = []
        told, per_turn = [], []
        for question in questions:
            messages.append({"role": "user", "content": question})
            engine.submit(messages, GenerationOptions(max_new_tokens=24))
            result = None
            while engine.has_work:
                for reported in engine.step():
                    result = reported.event.result or result
            assert result is not None, "a request always has a result"
            told.append(result.token_ids)
            num_prompt = len(tokenizer.encode(result.prompt))
            per_turn.append((num_prompt, num_prompt - result.stats.reused_tokens))
            messages.append({"role": "assistant", "content": result.text})
        answers.append(told)
        computed.append(per_turn)
    return {
        "answers_equal": answers[0] == answers[1],
        "prompt_tokens": [total for total, _ in computed[1]],
        "computed_without_reuse": [own for _, own in computed[0]],
        "computed_with_reuse": [own for _, own in computed[1]],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-prompts", type=int, default=48)
    parser.add_argument("--num-repeats", type=int, default=5)
    parser.add_argument("--num-threads", type=int, default=2)
    parser.add_argument("--max-new-tokens", type=int, default=96)
    arguments = parser.parse_args()
    levels, block_lengths = [1, 2, 4, 8, 16], [4, 8, 16, 32]
    console = Console()
    with tempfile.TemporaryDirectory() as folder:
        build("nemodiff-tiny", Path(folder) / "bundle", max_seq_len=1024, block_length=32, max_batch_size=MANY)
        bundle = Bundle.open(Path(folder) / "bundle")
        session = OnnxRuntimeSession.open(bundle, arguments.num_threads)
        tokenizer = Tokenizer.from_dir(bundle.tokenizer_dir)
        prompts = [
            tokenizer.encode(tokenizer.apply_chat_template([{"role": "user", "content": problem.prompt}]))
            for problem in held_out_problems(MANY, SEED)
        ]
        cases = cases_of(session, tokenizer, levels, block_lengths, arguments.max_new_tokens)
        seconds, num_tokens = throughput(cases, prompts[: arguments.num_prompts], arguments.num_repeats)
        scaling = median_ratio(seconds["ar", 1], seconds["ar", 16])
        share = statistics.median(cases["ar", 16].engine_shares[-arguments.num_repeats :])
        reuse = chat_reuse(session, tokenizer)
        found = {
            "ar_16_over_1": Target(scaling, at_least=2.5),
            "engine_share_at_16": Target(share, at_least=0.8),
            "loop_us_per_request_and_run_at_64": Target(loop_cost(session, tokenizer, prompts), at_most=50.0),
            "threads_of_1000_queued": Target(queued_threads(session, tokenizer, prompts[0]), at_most=0),
            "chat_answers_equal_with_reuse": Target(float(reuse["answers_equal"]), at_least=1.0),
        }
    names = list(dict.fromkeys(name for name, _ in cases))
    table = Table("tokens/s over ar alone", *(f"{level} at a time" for level in levels))
    over = {key: median_ratio(seconds["ar", 1], times) for key, times in seconds.items()}
    for name in names:
        table.add_row(name, *(f"{over[name, level]:.2f}" for level in levels))
    console.print(table)
    for name, target in found.items():
        console.print(f"{name}: {target.value:.4g} ({'met' if target.is_met else 'MISSED'})")
    print(
        json.dumps(
            {
                "benchmark": "concurrency",
                "hardware": hardware(arguments.num_threads),
                "versions": versions(),
                "outputs_equal": True,
                "num_prompts": arguments.num_prompts,
                "num_tokens": num_tokens,
                "speed_over_ar_alone": {name: {level: over[name, level] for level in levels} for name in names},
                "best_at": {level: max(names, key=lambda name: over[name, level]) for level in levels},
                "chat": reuse,
                "targets": {name: target.to_dict() for name, target in found.items()},
            }
        )
    )
    sys.exit(0 if all(target.is_met for target in found.values()) else 1)


if __name__ == "__main__":
    main()

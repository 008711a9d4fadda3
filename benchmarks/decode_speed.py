"""Tokens per second of whole answers at batch 1: `transformers`, ar, and self_speculation at several block lengths."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from measure import interleaved, median_ratio

from nemodiff_trt.runtime.answer import GenerationResult
from nemodiff_trt.runtime.bench.reference_model import ReferenceModel
from nemodiff_trt.runtime.options import GenerationOptions
from nemodiff_trt.runtime.tri_mode_lm import TriModeLM

REFERENCE, AR = "transformers", "ar"


class OutputsDifferError(Exception):
    """Two ways to compute the same greedy answer gave different tokens; their speeds would mean nothing."""


@dataclass
class DecodeSpeed:
    """Seconds of every round, and the statistics of our own answers in every round, by case."""

    seconds: dict[str, list[float]]
    answers: dict[str, list[list[GenerationResult]]] = field(default_factory=dict)
    num_tokens: int = 0

    def tokens_per_second(self, case: str) -> float:
        return self.num_tokens / statistics.median(self.seconds[case])

    def speed_over(self, case: str, base: str) -> float:
        """How many times as fast `case` is as `base`."""
        return median_ratio(self.seconds[base], self.seconds[case])

    def engine_share(self, case: str) -> float:
        """Part of the decode time that was spent inside engine runs; median over rounds."""
        shares = []
        for results in self.answers[case]:
            decode_ms = sum(result.stats.decode_ms for result in results)
            shares.append(sum(result.stats.engine_ms for result in results) / decode_ms)
        return statistics.median(shares)

    def summary(self, case: str) -> dict[str, Any]:
        """Numbers of one of our own cases."""
        stats = [result.stats for results in self.answers[case] for result in results]
        later_tokens = sum(each.new_tokens - 1 for each in stats)
        accepted = [each.mean_accepted for each in stats if each.mean_accepted is not None]
        return {
            "tokens_per_second": self.tokens_per_second(case),
            "decode_tokens_per_second": later_tokens / sum(each.decode_ms for each in stats) * 1e3,
            "tokens_per_forward": later_tokens / sum(each.forward_passes for each in stats),
            "mean_accepted": statistics.mean(accepted) if accepted else None,
            "time_to_first_token_ms": statistics.median(each.prefill_ms for each in stats),
            "engine_share": self.engine_share(case),
        }


def speculative(block_length: int) -> str:
    return f"self_speculation B={block_length}"


def options_of(block_lengths: list[int], max_new_tokens: int) -> dict[str, GenerationOptions]:
    """Our own cases."""
    cases = {AR: GenerationOptions(mode="ar", max_new_tokens=max_new_tokens)}  # type: ignore[arg-type]
    for block_length in block_lengths:
        cases[speculative(block_length)] = GenerationOptions(
            mode="self_speculation",  # type: ignore[arg-type]
            max_new_tokens=max_new_tokens,
            block_length=block_length,
        )
    return cases


def check_outputs(
    model: TriModeLM, reference: ReferenceModel, prompts: list[list[int]], cases: dict[str, GenerationOptions]
) -> int:
    """Compare all cases with `transformers`, token by token; returns the number of tokens of all answers.

    Raises:
        OutputsDifferError: names the case and the prompt.
    """
    num_tokens = 0
    for index, prompt in enumerate(prompts):
        wanted = reference.generate(prompt, cases[AR].max_new_tokens)
        num_tokens += len(wanted)
        for name, options in cases.items():
            (answer,) = model.generate(prompt, options)
            if answer.token_ids != wanted:
                raise OutputsDifferError(f"{name}, prompt {index}: {answer.token_ids} instead of {wanted}")
    return num_tokens


def measure_decode_speed(
    model: TriModeLM,
    reference: ReferenceModel,
    prompts: list[list[int]],
    cases: dict[str, GenerationOptions],
    num_repeats: int,
) -> DecodeSpeed:
    """Check all outputs, then time all prompts, one by one, in every case."""
    num_tokens = check_outputs(model, reference, prompts, cases)
    answers: dict[str, list[list[GenerationResult]]] = {name: [] for name in cases}

    def ours(name: str) -> Callable[[], None]:
        return lambda: answers[name].append([model.generate(prompt, cases[name])[0] for prompt in prompts])

    def theirs() -> None:
        for prompt in prompts:
            reference.generate(prompt, cases[AR].max_new_tokens)

    seconds = interleaved({REFERENCE: theirs, **{name: ours(name) for name in cases}}, num_repeats)
    return DecodeSpeed(seconds, {name: rounds[-num_repeats:] for name, rounds in answers.items()}, num_tokens)

"""Score a mode on generated problems: exact answers, tokens per forward, acceptance, speed."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from nemodiff_trt.runtime.answer import GenerationResult
from nemodiff_trt.runtime.options import GenerationOptions
from nemodiff_trt.runtime.tri_mode_lm import TriModeLM
from nemodiff_trt.tokenizer import Tokenizer
from nemodiff_trt.training.problems import Problem


@dataclass(frozen=True, slots=True)
class ModeScore:
    """Totals over all problems; ratios are of totals, so long answers weigh more than short ones.

    Attributes:
        accuracy: share of exactly right final answers.
        accuracy_by_category: the same for each category.
        tokens_per_forward: tokens after the first of each answer, by engine runs after prefill.
        mean_accepted: tokens emitted per speculation cycle, the verifier's own included; None in other modes.
        tokens_per_second: tokens after the first, by wall time of the whole evaluation, prefill and text included.
    """

    num_problems: int
    accuracy: float
    accuracy_by_category: dict[str, float]
    tokens_per_forward: float
    mean_accepted: float | None
    tokens_per_second: float


def answer_problems(
    model: TriModeLM, problems: Sequence[Problem], options: GenerationOptions
) -> tuple[list[GenerationResult], float]:
    """Results in the order of `problems`, and the seconds it took. Problems with reasoning are asked with thinking."""
    results: dict[int, GenerationResult] = {}
    begin_s = time.perf_counter()
    for thinking in (False, True):
        indices = [index for index, problem in enumerate(problems) if problem.thinking is thinking]
        chats = [[{"role": "user", "content": problems[index].prompt}] for index in indices]
        answered = model.generate(chats, options, enable_thinking=thinking) if chats else []
        results.update(zip(indices, answered, strict=True))
    return [results[index] for index in range(len(problems))], time.perf_counter() - begin_s


def score(tokenizer: Tokenizer, problems: Sequence[Problem], results: Sequence[GenerationResult], seconds: float) -> ModeScore:
    """Grade `results` and add up their counts."""
    right = [
        problem.is_correct(final_text(tokenizer, result.token_ids)) for problem, result in zip(problems, results, strict=True)
    ]
    by_category = {
        name: [is_right for is_right, problem in zip(right, problems, strict=True) if problem.category == name]
        for name in dict.fromkeys(problem.category for problem in problems)
    }
    later_tokens = sum(result.stats.new_tokens - 1 for result in results)
    forwards = sum(result.stats.forward_passes for result in results)
    # A ratio of None belongs to an answer of one token: it had no cycle.
    cycles = sum((result.stats.new_tokens - 1) / result.stats.mean_accepted for result in results if result.stats.mean_accepted)
    return ModeScore(
        num_problems=len(problems),
        accuracy=sum(right) / len(right),
        accuracy_by_category={name: sum(hits) / len(hits) for name, hits in by_category.items()},
        tokens_per_forward=later_tokens / max(forwards, 1),
        mean_accepted=later_tokens / cycles if cycles else None,
        tokens_per_second=later_tokens / seconds,
    )


def final_text(tokenizer: Tokenizer, token_ids: Sequence[int]) -> str:
    """Text after the last `</think>`, special tokens left out."""
    end_think = tokenizer.end_think_token_id
    start = max((index + 1 for index, token in enumerate(token_ids) if token == end_think), default=0)
    return tokenizer.decode(token_ids[start:])

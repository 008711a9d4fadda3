"""Scores: exact grading behind the think block, ratios of totals."""

from __future__ import annotations

from pathlib import Path

import pytest

from nemodiff_trt.runtime.answer import GenerationResult
from nemodiff_trt.runtime.evaluation import final_text, score
from nemodiff_trt.runtime.sequence import FinishReason
from nemodiff_trt.runtime.stats import GenerationStats
from nemodiff_trt.tokenizer import Tokenizer
from nemodiff_trt.training.problems import Problem
from nemodiff_trt.vocabulary import Mode


@pytest.fixture(scope="module")
def tokenizer(tiny_checkpoint_dir: Path) -> Tokenizer:
    return Tokenizer.from_dir(tiny_checkpoint_dir)


def result(tokenizer: Tokenizer, text: str, forwards: int, cycles: int) -> GenerationResult:
    ids = tuple(tokenizer.encode(text))
    later = len(ids) - 1
    stats = GenerationStats(
        prompt_tokens=3,
        new_tokens=len(ids),
        forward_passes=forwards,
        prefill_passes=1,
        reused_tokens=0,
        step_tokens=later,
        tokens_per_forward=later / forwards if forwards else None,
        mean_accepted=later / cycles if cycles else None,
        mean_accepted_drafts=None,
        reference_nfe=forwards,
        queue_ms=0.0,
        prefill_ms=1.0,
        decode_ms=1.0,
        engine_ms=1.0,
        tokens_per_second=None,
    )
    return GenerationResult("p", text, ids, FinishReason.EOS, Mode.SELF_SPECULATION, stats)


def test_the_working_is_not_the_answer(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("so 7</think>It is 8.<|im_end|>")
    assert final_text(tokenizer, ids) == "It is 8."
    assert final_text(tokenizer, tokenizer.encode("It is 8.")) == "It is 8."


def test_ratios_are_of_totals_and_accuracy_is_by_category(tokenizer: Tokenizer) -> None:
    problems = [Problem("a", "1", "yes"), Problem("a", "2", "no"), Problem("b", "3", "x" * 40)]
    results = [
        result(tokenizer, "yes", 2, 1),
        result(tokenizer, "yes", 2, 1),
        result(tokenizer, "x" * 40, 6, 3),
    ]
    scored = score(tokenizer, problems, results, seconds=2.0)
    later = sum(len(entry.token_ids) - 1 for entry in results)
    assert scored.accuracy == pytest.approx(2 / 3)
    assert scored.accuracy_by_category == {"a": 0.5, "b": 1.0}
    assert scored.tokens_per_forward == pytest.approx(later / 10)
    assert scored.mean_accepted == pytest.approx(later / 5)
    assert scored.tokens_per_second == pytest.approx(later / 2)


def test_an_answer_of_one_token_has_no_cycle(tokenizer: Tokenizer) -> None:
    scored = score(tokenizer, [Problem("a", "1", "y")], [result(tokenizer, "y", 0, 0)], seconds=1.0)
    assert scored.mean_accepted is None
    assert scored.tokens_per_forward == 0.0

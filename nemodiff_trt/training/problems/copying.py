"""Repeating a line: the answer is in the prompt, word for word (lowest entropy once the line is found)."""

from __future__ import annotations

import random

from nemodiff_trt.training.problems.base import Problem, join_lines
from nemodiff_trt.training.problems.words import invented_word, phrase

CATEGORY = "copying"


def generate(rng: random.Random) -> Problem:
    """A line of known or invented words, two to four times, plain or numbered."""
    times = rng.randint(2, 4)
    line = (
        phrase(rng, rng.randint(4, 9)) if rng.random() < 0.6 else " ".join(invented_word(rng) for _ in range(rng.randint(3, 5)))
    )
    if rng.random() < 0.5:
        return Problem(CATEGORY, f"Repeat {times} times: {line}", join_lines(*[line] * times))
    numbered = join_lines(*(f"{index}. {line}" for index in range(1, times + 1)))
    return Problem(CATEGORY, f"Repeat {times} times with numbers: {line}", numbered)

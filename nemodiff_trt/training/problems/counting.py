"""Counting up or down in steps: no copying, every number follows from the rule (medium entropy)."""

from __future__ import annotations

import random

from nemodiff_trt.training.problems.base import Problem

CATEGORY = "counting"
_STEPS = (1, 2, 3, 4, 5, 10)


def generate(rng: random.Random) -> Problem:
    """Eight to twenty numbers up to 200, separated by commas."""
    step = rng.choice(_STEPS)
    count = rng.randint(8, 20)
    start = rng.randint(0, 200 - step * (count - 1))
    numbers = [start + step * index for index in range(count)]
    direction = "up"
    if rng.random() < 0.4:
        numbers.reverse()
        direction = "down"
    prompt = f"Count {direction} from {numbers[0]} to {numbers[-1]} in steps of {step}."
    return Problem(CATEGORY, prompt, ", ".join(map(str, numbers)))

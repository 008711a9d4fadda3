"""Counting up or down in steps: no copying, every number follows from the rule (medium entropy)."""

from __future__ import annotations

import random

from nemodiff_trt.training.problems.base import Problem

CATEGORY = "counting"


def generate(rng: random.Random) -> Problem:
    """Eight to twenty numbers below 200, separated by commas."""
    step, count = rng.randint(1, 9), rng.randint(8, 20)
    start = rng.randint(0, 199 - step * (count - 1))
    numbers = [start + step * index for index in range(count)]
    direction = "up"
    if rng.random() < 0.4:
        numbers.reverse()
        direction = "down"
    prompt = f"Count {direction} from {numbers[0]} to {numbers[-1]} in steps of {step}."
    return Problem(CATEGORY, prompt, ", ".join(map(str, numbers)))

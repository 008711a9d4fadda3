"""Sorting words or numbers: the whole order is decided before the first token (high entropy for its length)."""

from __future__ import annotations

import random

from nemodiff_trt.training.problems.base import Problem
from nemodiff_trt.training.problems.words import NAMES

CATEGORY = "sorting"


def generate(rng: random.Random) -> Problem:
    """Four to seven different items; names by alphabet, numbers ascending or descending."""
    count = rng.randint(4, 7)
    if rng.random() < 0.4:
        names = rng.sample(NAMES, count)
        return Problem(CATEGORY, f"Sort by name: {', '.join(names)}", f"By name: {', '.join(sorted(names))}")
    numbers = rng.sample(range(10, 100), count)
    is_descending = rng.random() < 0.5
    ordered = ", ".join(map(str, sorted(numbers, reverse=is_descending)))
    listed = ", ".join(map(str, numbers))
    if is_descending:
        return Problem(CATEGORY, f"Sort from large to small: {listed}", f"From large to small: {ordered}")
    return Problem(CATEGORY, f"Sort from small to large: {listed}", f"From small to large: {ordered}")

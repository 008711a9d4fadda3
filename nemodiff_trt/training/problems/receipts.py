"""Receipts: independent products that a parallel draft can compute at once, then a running total that it cannot."""

from __future__ import annotations

import random

from nemodiff_trt.training.problems.base import Problem, join_lines
from nemodiff_trt.training.problems.words import THINGS

CATEGORY = "receipt"


def generate(rng: random.Random) -> Problem:
    """Two to five items with count and price, a line each, and the total."""
    items = [(thing, rng.randint(2, 9), rng.randint(2, 9)) for thing in rng.sample(THINGS, rng.randint(2, 5))]
    described = ", ".join(f"{count} {thing} at {price}" for thing, count, price in items)
    lines, total = [], 0
    for thing, count, price in items:
        total += count * price
        lines.append(f"{thing}: {count} * {price} = {count * price}, sum {total}")
    return Problem(CATEGORY, f"Write the receipt for {described}.", join_lines(*lines, f"total: {total}"))

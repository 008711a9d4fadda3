"""Arithmetic stories with worked answers: every step depends on the one before it (high entropy for a parallel draft)."""

from __future__ import annotations

import random

from nemodiff_trt.training.problems.base import Problem, join_lines
from nemodiff_trt.training.problems.words import NAMES, THINGS

CATEGORY = "word_problem"
# Asked with thinking, the working moves between the think tags.
THINKING_SHARE = 0.2
MAX_TOTAL = 99
MIN_TOTAL_TO_LOSE = 5


def generate(rng: random.Random) -> Problem:
    """Two to five changes to a count, then the count."""
    name, thing = rng.choice(NAMES), rng.choice(THINGS)
    total = rng.randint(10, 60)
    story, working = [f"{name} has {total} {thing}."], [f"{name} starts with {total} {thing}."]
    for _ in range(rng.randint(2, 5)):
        sentence, lines, total = _change(rng, total)
        story.append(sentence)
        working += lines
    prompt = " ".join([*story, f"How many {thing} does {name} have now?"])
    final = f"{name} has {total} {thing} now. The answer is {total}."
    if rng.random() < THINKING_SHARE:
        return Problem(CATEGORY, prompt, final, join_lines(*working))
    return Problem(CATEGORY, prompt, join_lines(*working, final))


def _change(rng: random.Random, total: int) -> tuple[str, list[str], int]:
    """One sentence, its working, and the new total, always between 1 and `MAX_TOTAL`."""
    kind = rng.choice(("gain", "loss", "bags"))
    bags, size = rng.randint(2, 5), rng.randint(2, 9)
    if kind == "bags" and total + bags * size <= MAX_TOTAL:
        product, new = bags * size, total + bags * size
        lines = [f"{bags} bags of {size} make {bags} * {size} = {product}.", f"Adding them gives {total} + {product} = {new}."]
        return f"Then come {bags} bags of {size}.", lines, new
    if total < MIN_TOTAL_TO_LOSE or (kind == "gain" and total < MAX_TOTAL - 10):
        gain = rng.randint(2, min(40, MAX_TOTAL - total))
        return f"Then {gain} more arrive.", [f"Adding {gain} gives {total} + {gain} = {total + gain}."], total + gain
    loss = rng.randint(1, min(40, total - 1))
    return f"Then {loss} get lost.", [f"Losing {loss} leaves {total} - {loss} = {total - loss}."], total - loss

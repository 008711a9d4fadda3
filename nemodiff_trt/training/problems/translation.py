"""Translating with a table of invented words given in the prompt: look-ups in an order the prompt decides (medium entropy)."""

from __future__ import annotations

import random

from nemodiff_trt.training.problems.base import Problem, join_lines
from nemodiff_trt.training.problems.words import NOUNS, distinct

CATEGORY = "translation"


def generate(rng: random.Random) -> Problem:
    """Three to six table rows; three to six words to translate, each shown with its meaning, then the whole."""
    foreign = distinct(rng, rng.randint(3, 6))
    meaning = dict(zip(foreign, rng.sample(NOUNS, len(foreign)), strict=True))
    sentence = [rng.choice(foreign) for _ in range(rng.randint(3, 6))]
    # The same words in table and answer: with "is" in the table the look-up was never learned.
    table = ", ".join(f"{word} means {meaning[word]}" for word in foreign)
    steps = [f"{word} means {meaning[word]}" for word in sentence]
    final = "So it says: " + " ".join(meaning[word] for word in sentence)
    return Problem(CATEGORY, f"Table: {table}. Translate: {' '.join(sentence)}", join_lines(*steps, final))

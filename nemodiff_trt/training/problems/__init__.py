"""Our own synthetic text: categories of different entropy, every prompt with one exactly checkable answer."""

from __future__ import annotations

import random
from collections.abc import Iterator

from nemodiff_trt.errors import InvalidInputError
from nemodiff_trt.training.problems import (
    code,
    copying,
    counting,
    json_records,
    receipts,
    sorting,
    translation,
    word_problems,
)
from nemodiff_trt.training.problems.base import Category as Category
from nemodiff_trt.training.problems.base import Problem as Problem
from nemodiff_trt.training.problems.base import Split as Split

# Weights follow how slowly a category was learned in trial runs; evaluation takes every category alike.
CATEGORIES: tuple[Category, ...] = (
    Category(word_problems.CATEGORY, word_problems.generate, 1.75),
    Category(receipts.CATEGORY, receipts.generate, 1.25),
    Category(sorting.CATEGORY, sorting.generate, 1.5),
    Category(translation.CATEGORY, translation.generate, 1.5),
    Category(counting.CATEGORY, counting.generate, 1.5),
    Category(copying.CATEGORY, copying.generate, 1.25),
    Category(code.CATEGORY, code.generate, 0.75),
    Category(json_records.CATEGORY, json_records.generate, 1.0),
)


def training_problems(rng: random.Random) -> Iterator[Problem]:
    """Endless problems of the training split, categories drawn by weight."""
    weights = [category.weight for category in CATEGORIES]
    while True:
        problem = rng.choices(CATEGORIES, weights)[0].generate(rng)
        if problem.split is Split.TRAIN:
            yield problem


def held_out_problems(count: int, seed: int, categories: tuple[str, ...] = ()) -> list[Problem]:
    """`count` different held-out problems, the categories in turn.

    Args:
        count: how many, at least 1.
        seed: of the generator.
        categories: names to keep; empty means all.
    """
    known = {category.name: category for category in CATEGORIES}
    for name in categories:
        if name not in known:
            raise InvalidInputError("categories", name, ", ".join(known))
    if count < 1:
        raise InvalidInputError("count", count, "a positive integer")
    rng = random.Random(seed)
    chosen = [known[name] for name in categories] or list(CATEGORIES)
    problems: dict[str, Problem] = {}
    while len(problems) < count:
        category = chosen[len(problems) % len(chosen)]
        problem = category.generate(rng)
        if problem.split is Split.HELD_OUT and problem.prompt not in problems:
            problems[problem.prompt] = problem
    return list(problems.values())

"""Small Python functions from a description: fixed syntax around names and numbers taken from the prompt (low entropy)."""

from __future__ import annotations

import random

from nemodiff_trt.training.problems.base import Problem, join_lines
from nemodiff_trt.training.problems.words import NOUNS

CATEGORY = "code"
_PREFIXES = ("get", "make", "scale", "update", "compute", "adjust")
_OPERATIONS = (("adds", "+"), ("subtracts", "-"), ("multiplies by", "*"), ("divides by", "//"))
_COMPARISONS = (("above", ">"), ("below", "<"), ("at least", ">="), ("at most", "<="))


def generate(rng: random.Random) -> Problem:
    """An arithmetic function, a filter or a class, equally often."""
    return rng.choice((_arithmetic, _filter, _record))(rng)


def _function_name(rng: random.Random) -> str:
    return f"{rng.choice(_PREFIXES)}_{rng.choice(NOUNS)}"


def _arithmetic(rng: random.Random) -> Problem:
    """A chain of operations on one argument."""
    name, argument = _function_name(rng), rng.choice(NOUNS)
    steps = [(*rng.choice(_OPERATIONS), rng.randint(2, 99)) for _ in range(rng.randint(2, 4))]
    described = ", then ".join(f"{verb} {number}" for verb, _, number in steps)
    lines = [f"def {name}({argument}):", f"    result = {argument}"]
    lines += [f"    result = result {symbol} {number}" for _, symbol, number in steps]
    prompt = f"Write a Python function {name} that takes {argument}, {described}, and returns the result."
    return Problem(CATEGORY, prompt, join_lines(*lines, "    return result"))


def _filter(rng: random.Random) -> Problem:
    """A loop that keeps the items of a list that pass a comparison."""
    name, argument = _function_name(rng), rng.choice(NOUNS)
    word, symbol = rng.choice(_COMPARISONS)
    limit = rng.randint(0, 99)
    lines = (
        f"def {name}({argument}_list):",
        f"    {argument}_kept = []",
        f"    for {argument} in {argument}_list:",
        f"        if {argument} {symbol} {limit}:",
        f"            {argument}_kept.append({argument})",
        f"    return {argument}_kept",
    )
    prompt = f"Write a Python function {name} that keeps every {argument} of a list that is {word} {limit}."
    return Problem(CATEGORY, prompt, join_lines(*lines))


def _record(rng: random.Random) -> Problem:
    """A class with stored fields."""
    name, fields = rng.choice(NOUNS).capitalize(), rng.sample(NOUNS, rng.randint(2, 4))
    lines = [f"class {name}:", f"    def __init__(self, {', '.join(fields)}):"]
    lines += [f"        self.{field} = {field}" for field in fields]
    return Problem(CATEGORY, f"Write a Python class {name} that stores {', '.join(fields)}.", join_lines(*lines))

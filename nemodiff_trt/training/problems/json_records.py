"""Loose records to JSON: strict syntax, values copied from the prompt (low entropy)."""

from __future__ import annotations

import json
import random

from nemodiff_trt.training.problems.base import Problem, join_lines
from nemodiff_trt.training.problems.words import CITIES, JOBS, NAMES

CATEGORY = "json"


def generate(rng: random.Random) -> Problem:
    """Two to five people as a JSON list, one object a line."""
    people = [
        {"name": rng.choice(NAMES), "age": rng.randint(18, 90), "city": rng.choice(CITIES), "job": rng.choice(JOBS)}
        for _ in range(rng.randint(2, 5))
    ]
    keys = ["name", *rng.sample(("age", "city", "job"), rng.randint(1, 3))]
    rows = [{key: person[key] for key in keys} for person in people]
    described = "; ".join(", ".join(f"{value}" for value in row.values()) for row in rows)
    body = ",\n".join(f"  {json.dumps(row)}" for row in rows)
    return Problem(CATEGORY, f"Write a JSON list with the keys {', '.join(keys)} for: {described}.", join_lines("[", body, "]"))

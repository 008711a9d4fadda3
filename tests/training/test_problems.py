"""Generated problems: right answers, exact grading, and a split no seed can cross."""

from __future__ import annotations

import json
import random
import re
from itertools import islice

import pytest

from nemodiff_trt.errors import InvalidInputError
from nemodiff_trt.training.problems import CATEGORIES, Problem, Split, held_out_problems, training_problems

NUM_SAMPLES = 300


def samples(name: str) -> list[Problem]:
    rng = random.Random(7)
    generate = next(category.generate for category in CATEGORIES if category.name == name)
    return [generate(rng) for _ in range(NUM_SAMPLES)]


def test_every_equation_in_every_answer_holds() -> None:
    num_checked = 0
    for name in ("word_problem", "receipt"):
        for problem in samples(name):
            for left, symbol, right, result in re.findall(r"(\d+) ([-+*]) (\d+) = (\d+)", problem.reasoning + problem.answer):
                a, b = int(left), int(right)
                assert {"+": a + b, "-": a - b, "*": a * b}[symbol] == int(result)
                num_checked += 1
    assert num_checked > 2 * NUM_SAMPLES


def test_word_problem_ends_with_the_last_result_of_its_working() -> None:
    for problem in samples("word_problem"):
        results = re.findall(r"= (\d+)", problem.reasoning + problem.answer)
        assert problem.answer.endswith(f"The answer is {results[-1]}.")


def test_code_answers_compile_and_do_what_the_prompt_says() -> None:
    num_run = 0
    for problem in samples("code"):
        namespace: dict[str, object] = {}
        exec(compile(problem.answer, "answer", "exec"), namespace)
        kept = re.match(
            r"Write a Python function (\w+) that keeps every \w+ of a list that is (above|below) (\d+)", problem.prompt
        )
        if kept:
            name, word, limit = kept[1], kept[2], int(kept[3])
            wanted = [x for x in range(100) if (x > limit if word == "above" else x < limit)]
            assert namespace[name](list(range(100))) == wanted  # type: ignore[operator]
            num_run += 1
    assert num_run > 20


def test_json_answers_parse_to_the_values_of_the_prompt() -> None:
    for problem in samples("json"):
        values = [list(map(str, row.values())) for row in json.loads(problem.answer)]
        described = problem.prompt.partition(" for: ")[2].removesuffix(".")
        assert values == [row.split(", ") for row in described.split("; ")]


def test_sorting_and_counting_answers_are_ordered() -> None:
    for name in ("sorting", "counting"):
        for problem in samples(name):
            items = problem.answer.rpartition(": ")[2].split(", ")
            ordered = sorted(items, key=int if items[0].isdigit() else str)
            assert items in (ordered, ordered[::-1])


def test_grading_is_exact_and_looks_behind_the_think_block() -> None:
    problem = Problem("x", "p", "The answer is 5.", "2 + 3 = 5")
    assert problem.is_correct("2 + 3 = 5\n</think>The answer is 5.")
    assert not problem.is_correct("2 + 3 = 5\n</think>The answer is 6.")
    assert not problem.is_correct("The answer is 5. Or so.")


def test_no_training_stream_ever_holds_a_held_out_prompt() -> None:
    held_out = {problem.prompt for problem in held_out_problems(400, seed=1)}
    assert len(held_out) == 400
    for seed in range(3):
        trained = {problem.prompt for problem in islice(training_problems(random.Random(seed)), 2000)}
        assert not trained & held_out
        assert all(Problem("x", prompt, "").split is Split.TRAIN for prompt in trained)


def test_held_out_problems_take_all_categories_alike_and_follow_the_seed() -> None:
    problems = held_out_problems(80, seed=3)
    assert {name: sum(p.category == name for p in problems) for name in {p.category for p in problems}} == {
        category.name: 10 for category in CATEGORIES
    }
    assert problems == held_out_problems(80, seed=3)
    assert problems != held_out_problems(80, seed=4)


def test_unknown_category_is_named() -> None:
    with pytest.raises(InvalidInputError, match="categories: got 'poetry'"):
        held_out_problems(1, seed=0, categories=("poetry",))

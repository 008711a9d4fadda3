"""The interpreter of symbolic sizes."""

from __future__ import annotations

import pytest

from nemodiff_trt.plan_audit.program import Program, read_program
from nemodiff_trt.plan_audit.symbols import evaluate
from support import program_texts as texts


def program(*shape: str) -> Program:
    """Inputs ids ["b" "s"]; `shape_main` copies them from "in_b" and "in_s" first."""
    text = texts.program(
        inputs=("input_ids.1", "in_b.1"),
        outputs=(),
        descriptors=(texts.tensor("input_ids.1", '"b" "s"', "int64"), texts.size("in_b.1")),
        main=(),
        shape=(*shape, texts.scalar("copy", ("size_b",), "b"), texts.scalar("copy", ("size_s",), "s")),
    )
    found = read_program(text)
    assert found is not None
    return found


def test_sources_are_found_behind_copies() -> None:
    values = evaluate(program(texts.scalar("mul", ("size_b", "size_s"), "rows")), batch=3, step=7, capacity=64)
    assert (values["b"], values["s"], values["rows"]) == (3, 7, 21)


@pytest.mark.parametrize(
    ("kind", "operands", "expected"),
    [
        ("add", ("size_s", "eight"), 15),
        ("sub", ("size_s", "eight"), -1),
        ("div", ("size_s", "minus"), -7),
        ("div", ("minus_eight", "size_s"), -1),
        ("leq", ("size_s", "eight"), 1),
        ("geq", ("size_s", "eight"), 0),
        ("lt", ("size_s", "eight"), 1),
        ("gt", ("size_s", "eight"), 0),
        ("eq", ("eight", "eight"), 1),
        ("neq", ("eight", "eight"), 0),
        ("and", ("eight", "zero"), 0),
        ("or", ("eight", "zero"), 1),
        ("select", ("zero", "size_s", "eight"), 8),
        ("select", ("eight", "size_s", "eight"), 7),
        ("min", ("size_s", "eight"), 7),
    ],
)
def test_operations(kind: str, operands: tuple[str, ...], expected: int) -> None:
    constants = {"eight": "8i64", "minus": "-1i64", "minus_eight": "-8i64", "zero": "0i64"}
    shape = [texts.memset(name, value) for name, value in constants.items()]
    values = evaluate(program(*shape, texts.scalar(kind, operands, "out")), batch=3, step=7, capacity=64)
    assert values["out"] == expected


@pytest.mark.parametrize("kind", ["div", "unheard_of", "select"])
def test_what_cannot_be_computed_is_missing(kind: str) -> None:
    shape = (texts.memset("zero", "0i64"), texts.scalar(kind, ("size_s", "zero"), "out"))
    after = texts.scalar("add", ("out", "size_s"), "later")
    values = evaluate(program(*shape, after), batch=3, step=7, capacity=64)
    assert "out" not in values
    assert "later" not in values


def test_numbers_do_not_grow_without_end() -> None:
    squares = [texts.scalar("mul", (f"n{i}", f"n{i}"), f"n{i + 1}") for i in range(60)]
    values = evaluate(program(texts.memset("n0", "7i64"), *squares), batch=1, step=1, capacity=1)
    assert max(values.values()) < 1 << 62

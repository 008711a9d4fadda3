"""Bytes that are no plan: a finding, never an exception."""

from __future__ import annotations

import json

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from nemodiff_trt.plan_audit import FindingCode, audit_plan
from support import program_texts as texts
from support.one_layer import CLEAN, FACTS, layer

PLAN = texts.plan(layer(CLEAN), rest=b"\1" * 64)
WORDS = ("header {", "main {", "shape_main {", "tensor={", "}", "dims={ 4 -1 }", '"', "=", "\0", "base=", "k", "x")


def check(plan: bytes) -> None:
    audit = audit_plan(plan, FACTS)
    assert json.loads(json.dumps(audit.to_dict(), allow_nan=False))["plan_bytes"] == len(plan)


@pytest.mark.parametrize("plan", [b"", b"\0", b"ONNX", b"header {", b"header {\n}\0", b"\x7fELF" + b"\0" * 1000])
def test_other_formats(plan: bytes) -> None:
    audit = audit_plan(plan, FACTS)
    assert audit.codes == {FindingCode.UNKNOWN_PLAN_FORMAT}
    assert audit.profiles == ()


@pytest.mark.parametrize("first", [b"{", b"}", b'"', b"=", b"\x7d\x03"])
def test_a_number_behind_a_program_may_look_like_text(first: bytes) -> None:
    plan = texts.plan(layer(CLEAN) + first.decode("latin-1"), rest=b"\1" * 64)
    assert audit_plan(plan, FACTS).findings == audit_plan(PLAN, FACTS).findings == ()


@given(st.binary(max_size=2000))
@settings(max_examples=200, deadline=None)
def test_any_bytes(plan: bytes) -> None:
    check(plan)


@given(st.integers(0, len(PLAN)))
@settings(max_examples=100, deadline=None)
def test_truncated_plans(length: int) -> None:
    check(PLAN[:length])


@given(st.lists(st.tuples(st.integers(0, len(PLAN) - 1), st.integers(0, 255)), max_size=30))
@example([(2290, 1)])  # one input of a matrix multiplication lost
@settings(max_examples=150, deadline=None)
def test_flipped_bytes(changes: list[tuple[int, int]]) -> None:
    damaged = bytearray(PLAN)
    for position, value in changes:
        damaged[position] = value
    check(bytes(damaged))


@given(st.lists(st.sampled_from(WORDS), max_size=60))
@settings(max_examples=200, deadline=None)
def test_words_of_the_format_in_any_order(words: list[str]) -> None:
    check(b"header {\n" + " ".join(words).encode() + b"}\ndescriptors { }\nmain { }\n\0")


@given(st.integers(0, PLAN.count(b"\n") - 1), st.integers(0, PLAN.count(b"\n") - 1))
@settings(max_examples=150, deadline=None)
def test_moved_and_lost_lines(lost: int, moved: int) -> None:
    lines = PLAN.split(b"\n")
    line = lines.pop(lost)
    lines.insert(moved, line)
    check(b"\n".join(lines))
    check(b"\n".join(lines[:lost] + lines[lost + 1 :]))

"""The bracket text and the programs in it."""

from __future__ import annotations

import pytest

from nemodiff_trt.plan_audit.plan_texts import PlanTexts
from nemodiff_trt.plan_audit.program import Program, find_programs, read_program, stored_name
from nemodiff_trt.plan_audit.text import PlanTextError, parse
from support import program_texts as texts


def test_keys_words_and_groups() -> None:
    group = parse('a=1 b = "two words" dims={ "S.1" 128 } list={ x=1 x=2 } loose')
    assert group.word("a") == "1"
    assert group.word("b") == "two words"
    assert group.group("dims").words == ("S.1", "128")
    assert [value for key, value in group.group("list").fields if key == "x"] == ["1", "2"]
    assert group.words == ("loose",)


def test_braces_inside_quotes_are_text() -> None:
    assert parse('name="{ForeignNode[a...b]}_shapeInput" next={ 1 }').word("name") == "{ForeignNode[a...b]}_shapeInput"


def test_a_block_needs_no_equals_sign() -> None:
    assert parse("main {\n label bb1: \n  copy={ name=c }\n}").group("main").group("copy").word("name") == "c"


@pytest.mark.parametrize("text", ["a={ b", "a }", "{" * 100 + "}" * 100])
def test_braces_that_do_not_match(text: str) -> None:
    with pytest.raises(PlanTextError):
        parse(text)


@pytest.mark.parametrize(
    ("written", "stored"),
    [
        ("embed_tokens.weight.1", "embed_tokens.weight"),
        ("layers.0.norm.weight [profile 12].1", "layers.0.norm.weight"),
        ("present_key_0.1", "present_key_0"),
        ("present_key_0", "present_key_0"),
    ],
)
def test_stored_name(written: str, stored: str) -> None:
    assert stored_name(written) == stored


def test_a_text_without_a_main_block_is_no_program() -> None:
    assert read_program("header { version = 5 }") is None


def small(profile: str = "", accelerators: str = "sm120 ") -> str:
    return texts.program(
        inputs=(f"x{profile}.1",),
        outputs=(),
        descriptors=(texts.tensor(f"x{profile}.1", "2 3"),),
        main=(texts.fusion((f"x{profile}.1",), "y"),),
        accelerators=accelerators,
    )


def read(*written: str, rest: bytes = b"") -> tuple[tuple[Program, ...], tuple[str, ...]]:
    return find_programs(PlanTexts.of(texts.plan(*written, rest=rest)))


def test_programs_profiles_and_bodies() -> None:
    programs, problems = read(small(), small(accelerators="*"), small(" [profile 1]"), rest=b"\1" * 64)
    assert [program.profile for program in programs] == [0, 1]
    assert [len(program.bodies) for program in programs] == [1, 0]
    assert problems == ()
    record = programs[0].tensors["x.1"]
    assert (record.dims, record.dtype) == ((2, 3), "bf16")
    assert programs[0].main[0].binary == 0


def test_one_damaged_text_does_not_hide_the_others() -> None:
    programs, problems = read(small()[:-3], small())
    assert len(programs) == 1
    assert "never closed" in problems[0]

"""The programs inside a plan: where they are, and their tensors and operations.

The format is undocumented: whatever is missing gets a harmless default, whatever is unknown is kept for the rules to judge.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from nemodiff_trt.plan_audit.plan_texts import PlanTexts
from nemodiff_trt.plan_audit.text import Group, PlanTextError, Value, parse

_PROFILE = re.compile(r" \[profile (\d+)\]")
_SUFFIX = re.compile(r"( \[profile \d+\])?(\.\d+)?$")


@dataclass(frozen=True, slots=True)
class TensorRecord:
    """A declared tensor. A dimension is a number or the name of a size. `base` names the tensor that this one is a view of."""

    name: str
    dims: tuple[int | str, ...]
    dtype: str
    region: str = ""
    base: str | None = None
    view_offset: str = ""
    payload_bytes: int | None = None
    is_scratch: bool = False


@dataclass(frozen=True, slots=True)
class Operation:
    """One line of a program. `binary` is the compiled kernel or fusion body it runs; `source` is what memset writes."""

    kind: str
    name: str
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    binary: int | None = None
    source: str = ""


@dataclass(frozen=True, slots=True)
class Program:
    """One program: that of an optimisation profile, or the body of a runtime fusion."""

    profile: int
    accelerators: tuple[str, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    shape_inputs: frozenset[str]
    host_regions: frozenset[str]
    tensors: Mapping[str, TensorRecord]
    main: tuple[Operation, ...]
    shape: tuple[Operation, ...] = ()
    is_fusion_body: bool = False
    bodies: tuple[Program, ...] = ()
    end: int = 0


def stored_name(name: str) -> str:
    """A tensor's name in the network: without the compiler's profile and version marks."""
    return _SUFFIX.sub("", name)


def find_programs(plan: PlanTexts) -> tuple[tuple[Program, ...], tuple[str, ...]]:
    """Programs of all profiles in the order of the plan, each with the bodies of its fusions, and what could not be read."""
    found: list[Program] = []
    bodies: list[list[Program]] = []
    problems: list[str] = []
    for found_text in plan.texts:
        start, text = found_text.start, found_text.text
        try:
            program = read_program(text, start + len(text))
        except PlanTextError as error:
            problems.append(f"text at byte {start}: {error}")
            continue
        if program is None:
            continue
        if not program.is_fusion_body:
            found.append(program)
            bodies.append([])
        elif found:
            bodies[-1].append(program)
        else:
            problems.append(f"text at byte {start}: the body of a fusion before any program")
    whole = tuple(replace(program, bodies=tuple(group)) for program, group in zip(found, bodies, strict=True))
    return whole, tuple(problems)


def read_program(text: str, end: int = 0) -> Program | None:
    """The program a text holds; None if it is none. `end` is where it ends in the plan, in bytes.

    Raises:
        PlanTextError: brackets that do not match.
    """
    whole = parse(text)
    names = {key for key, _ in whole.fields}
    if not {"header", "descriptors", "main"} <= names:
        return None
    header = whole.group("header")
    regions = header.groups("region")
    inputs = header.group("inputs").words
    accelerators = header.group("accelerators").words
    return Program(
        profile=_profile(inputs + header.group("outputs").words),
        accelerators=accelerators,
        inputs=inputs,
        outputs=header.group("outputs").words,
        shape_inputs=frozenset(header.group("shape_inputs").words),
        host_regions=frozenset(region.word("name") for region in regions if region.word("place") == "host"),
        tensors={record.name: record for record in _tensors(whole.group("descriptors"))},
        main=tuple(_operations(whole.group("main"))),
        shape=tuple(_operations(whole.group("shape_main"))),
        # A body is compiled when the engine starts, for whichever device it finds.
        is_fusion_body=accelerators == ("*",) or any("runtime-fusion" in region.word("name") for region in regions),
        end=end,
    )


def _profile(names: tuple[str, ...]) -> int:
    marks = (_PROFILE.search(name) for name in names)
    return next((int(mark[1]) for mark in marks if mark is not None), 0)


def _tensors(descriptors: Group) -> Iterator[TensorRecord]:
    for key, value in descriptors.fields:
        if key in ("tensor", "sub_tensor") and isinstance(value, Group):
            payload = value.word("const_payload_size")
            yield TensorRecord(
                name=value.word("name"),
                dims=tuple(int(word) if re.fullmatch(r"-?\d{1,18}", word) else word for word in value.group("dims").words),
                dtype=value.word("type"),
                region=value.word("region"),
                base=value.word("base") or None,
                view_offset=value.word("const_offset") or value.word("offset"),
                payload_bytes=int(payload) if re.fullmatch(r"\d{1,18}", payload) else None,
                is_scratch=value.word("is_scratchspace") == "1",
            )


def _operations(body: Group) -> Iterator[Operation]:
    for key, value in body.fields:
        if isinstance(value, Group):
            yield Operation(
                kind=key,
                name=value.word("name"),
                inputs=_operands(value, "input_args", "input"),
                outputs=_operands(value, "output_args", "output"),
                binary=_number(value.word("binary")),
                source=value.word("src"),
            )


def _operands(value: Group, *keys: str) -> tuple[str, ...]:
    """Names under the first of `keys` that is there."""
    present: list[Value] = [field for key in keys for name, field in value.fields if name == key]
    return present[0].words if present and isinstance(present[0], Group) else ()


def _number(word: str) -> int | None:
    return int(word) if re.fullmatch(r"\d{1,9}", word) else None

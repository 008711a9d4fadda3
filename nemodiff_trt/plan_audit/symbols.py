"""Values of a program's symbolic sizes for one batch and step: a small interpreter of `shape_main`.

A plan with dynamic shapes names its sizes (`__mye2771_proxy.1`, `proxy___mye17148`, ...). The inputs' dimensions tell which
names are the batch (axis 0) and the step (axis 1); all others are computed from them by a list of integer operations, which is
run here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from nemodiff_trt.plan_audit.program import Operation, Program


def _divide(a: int, b: int) -> int | None:
    """Rounds towards zero, as integer division on the device does."""
    if b == 0:
        return None
    quotient = abs(a) // abs(b)
    return quotient if (a < 0) == (b < 0) else -quotient


_BINARY: Mapping[str, Callable[[int, int], int | None]] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "div": _divide,
    "mod": lambda a, b: a % b if b else None,
    "min": min,
    "max": max,
    "eq": lambda a, b: int(a == b),
    "neq": lambda a, b: int(a != b),
    "lt": lambda a, b: int(a < b),
    "leq": lambda a, b: int(a <= b),
    "gt": lambda a, b: int(a > b),
    "geq": lambda a, b: int(a >= b),
    "and": lambda a, b: int(bool(a) and bool(b)),
    "or": lambda a, b: int(bool(a) or bool(b)),
}
_UNARY: Mapping[str, Callable[[int], int]] = {
    "copy": lambda a: a,
    "move": lambda a: a,
    "cast": lambda a: a,
    "not": lambda a: int(not a),
    "neg": lambda a: -a,
    "abs": abs,
}
# Sizes beyond this are not sizes; keeps damaged text from growing numbers without end.
_LIMIT = 1 << 62


def evaluate(program: Program, batch: int, step: int, capacity: int) -> dict[str, int]:
    """Values of all sizes that can be computed; a size missing from the result is unknown."""
    known = _sizes_of_inputs(program, (batch, step, capacity))
    values = {**known, **_sources(program, known)}
    for operation in program.shape:
        value = _run(operation, values)
        if value is not None and abs(value) < _LIMIT:
            for name in operation.outputs:
                values.setdefault(name, value)
    return values


def _sizes_of_inputs(program: Program, sizes: tuple[int, int, int]) -> dict[str, int]:
    """Named dimensions of the program's inputs: axis 0 is the batch, axis 1 the step, axis 2 the capacity of a cache."""
    known: dict[str, int] = {}
    for name in program.inputs:
        record = program.tensors.get(name)
        for axis, dim in enumerate(record.dims[:3] if record else ()):
            if isinstance(dim, str):
                known.setdefault(dim, sizes[axis])
    return known


def _sources(program: Program, known: Mapping[str, int]) -> dict[str, int]:
    """Follows copies back from named dimensions to the inputs of `shape_main` they come from."""
    copied_from = {
        operation.outputs[0]: operation.inputs[0]
        for operation in program.shape
        if operation.kind == "copy" and len(operation.inputs) == len(operation.outputs) == 1
    }
    sources: dict[str, int] = {}
    for name, value in known.items():
        seen = {name}
        while (source := copied_from.get(name)) is not None and source not in seen:
            sources.setdefault(source, value)
            seen.add(source)
            name = source
    return sources


def _run(operation: Operation, values: Mapping[str, int]) -> int | None:
    if operation.kind == "memset":
        number = re.match(r"-?\d{1,18}", operation.source)
        return int(number[0]) if number else None
    operands = [values.get(name) for name in operation.inputs]
    if operation.kind == "select" and len(operands) == 3:
        return operands[1] if operands[0] else operands[2] if operands[0] is not None else None
    if operation.kind in _BINARY and len(operands) == 2:
        a, b = operands
        return _BINARY[operation.kind](a, b) if a is not None and b is not None else None
    if operation.kind in _UNARY and len(operands) == 1:
        a = operands[0]
        return _UNARY[operation.kind](a) if a is not None else None
    return None

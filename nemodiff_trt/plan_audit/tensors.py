"""Operands of a program: which weight, cache, constant or activation a name stands for, and how many bytes that is."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from math import prod

from nemodiff_trt.plan_audit.facts import AuditPoint, StepFacts
from nemodiff_trt.plan_audit.program import Program, TensorRecord, stored_name
from nemodiff_trt.plan_audit.symbols import evaluate

# Bits an element; others are read off the digits in their name.
_BITS = {
    "float": 32,
    "half": 16,
    "double": 64,
    "bool": 8,
    "fp8_e4m3": 8,
    "fp8_e5m2": 8,
    "fp4_e2m1": 4,
    "e8m0": 8,
}
# Names used in reports.
_SHORT_DTYPES = {"float": "fp32", "half": "fp16"}


class OperandKind(StrEnum):
    """What an operand's bytes belong to."""

    WEIGHT = "weight"
    CACHE = "cache"
    CONSTANT = "constant"
    ACTIVATION = "activation"
    # In host memory: a size passed to a kernel.
    HOST = "host"
    # Workspace of a kernel, or a name the program does not declare.
    IGNORED = "ignored"


@dataclass(frozen=True, slots=True)
class Operand:
    """One operand of a launch, seen through all views: `base` is the tensor that owns the memory.

    `num_elements` is None if a size could not be evaluated; it is that of the view, `base_elements` that of the owner.
    """

    base: str
    label: str
    kind: OperandKind
    dims: tuple[int | None, ...]
    dtype: str
    bits: int
    num_elements: int | None
    base_elements: int | None
    view: tuple[str, tuple[int | None, ...]]

    @property
    def num_bytes(self) -> int:
        """0 if the size is unknown, which the audit reports."""
        return (self.num_elements or 0) * self.bits // 8

    @property
    def is_matrix(self) -> bool:
        return sum(dim is None or dim > 1 for dim in self.dims) >= 2


def dtype_bits(dtype: str) -> int:
    """Bits of one element; 0 for a name without any digits."""
    if dtype in _BITS:
        return _BITS[dtype]
    digits = re.search(r"\d+", dtype)
    return min(128, int(digits[0])) if digits and len(digits[0]) < 4 else 0


def dtype_label(dtype: str) -> str:
    """fp32, fp16, bf16, fp8, fp4, ..."""
    return _SHORT_DTYPES.get(dtype, dtype.split("_", maxsplit=1)[0]) or "unknown"


class TensorTable:
    """Operands of one program at one audit point."""

    def __init__(self, program: Program, facts: StepFacts, point: AuditPoint) -> None:
        self._program = program
        self._facts = facts
        self.symbols: Mapping[str, int] = evaluate(program, point.batch, point.step, facts.cache.capacity)
        self._operands: dict[str, Operand] = {}

    def operand(self, name: str) -> Operand:
        if name not in self._operands:
            self._operands[name] = self._resolve(name)
        return self._operands[name]

    def _resolve(self, name: str) -> Operand:
        record = self._program.tensors.get(name)
        if record is None:
            return Operand(name, stored_name(name), OperandKind.IGNORED, (), "", 0, 0, 0, ("", ()))
        owner = self._owner(record)
        dims, owner_dims = self._dims(record), self._dims(owner)
        kind = self._kind(owner, owner_dims)
        return Operand(
            base=owner.name,
            label=stored_name(owner.name),
            kind=kind,
            dims=dims,
            dtype=record.dtype,
            bits=dtype_bits(record.dtype),
            num_elements=_product(dims),
            base_elements=_product(owner_dims),
            view=(record.view_offset if record.base else "", dims),
        )

    def _owner(self, record: TensorRecord) -> TensorRecord:
        seen = {record.name}
        while record.base is not None and record.base not in seen and record.base in self._program.tensors:
            record = self._program.tensors[record.base]
            seen.add(record.name)
        return record

    def _dims(self, record: TensorRecord) -> tuple[int | None, ...]:
        return tuple(dim if isinstance(dim, int) else self.symbols.get(dim) for dim in record.dims)

    def _kind(self, owner: TensorRecord, dims: tuple[int | None, ...]) -> OperandKind:
        program, cache = self._program, self._facts.cache
        if owner.is_scratch:
            return OperandKind.IGNORED
        if owner.region in program.host_regions and owner.payload_bytes is None:
            return OperandKind.HOST
        if owner.payload_bytes is not None:
            return OperandKind.CONSTANT
        if owner.name in program.inputs:
            if stored_name(owner.name) in self._facts.weights:
                return OperandKind.WEIGHT
            # Caches go by the compiler's own names once the update is in place, so they are known by shape.
            if len(dims) == 4 and dims[1:] == (cache.num_kv_heads, cache.capacity, cache.head_dim):
                return OperandKind.CACHE
        return OperandKind.ACTIVATION


def _product(dims: tuple[int | None, ...]) -> int | None:
    known = [dim for dim in dims if dim is not None and dim >= 0]
    return prod(known) if len(known) == len(dims) else None


def distinct(operands: Iterable[Operand]) -> tuple[Operand, ...]:
    """Each memory once: views of one tensor are merged, and together are no larger than the tensor itself."""
    merged: dict[str, dict[tuple[str, tuple[int | None, ...]], Operand]] = {}
    for operand in operands:
        if operand.kind not in (OperandKind.HOST, OperandKind.IGNORED):
            merged.setdefault(operand.base, {})[operand.view] = operand
    return tuple(_merge(tuple(views.values())) for views in merged.values())


def _merge(views: tuple[Operand, ...]) -> Operand:
    first = views[0]
    if len(views) == 1:
        return first
    sizes = [view.num_elements for view in views if view.num_elements is not None]
    total = sum(sizes) if len(sizes) == len(views) else None
    if total is not None and first.base_elements is not None:
        total = min(total, first.base_elements)
    return Operand(
        base=first.base,
        label=first.label,
        kind=first.kind,
        dims=first.dims,
        dtype=first.dtype,
        bits=first.bits,
        num_elements=total,
        base_elements=first.base_elements,
        view=first.view,
    )

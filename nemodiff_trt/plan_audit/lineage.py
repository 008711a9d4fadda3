"""Where data comes from: tensors that are nothing but moved weights or caches, and what becomes of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from nemodiff_trt.plan_audit.launches import Launch, LaunchKind
from nemodiff_trt.plan_audit.program import Program, stored_name
from nemodiff_trt.plan_audit.tensors import Operand, OperandKind

# A constant smaller than this is a scale or a table of a kernel, not a weight.
MIN_WEIGHT_CONSTANT_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class Copy:
    """A generated kernel that writes out a weight or a cache again. `source` owns what is copied, `copy` what is written."""

    launch: Launch
    source: Operand
    copy: Operand

    @property
    def num_bytes(self) -> int:
        """Bytes it reads and writes."""
        return self.source.num_bytes + self.copy.num_bytes


def is_weight_like(operand: Operand) -> bool:
    """A weight, or a constant that is large enough to be one."""
    if operand.kind is OperandKind.WEIGHT:
        return True
    return operand.kind is OperandKind.CONSTANT and operand.is_matrix and operand.num_bytes >= MIN_WEIGHT_CONSTANT_BYTES


def weight_copies(launches: tuple[Launch, ...]) -> tuple[Copy, ...]:
    """Generated kernels whose result depends on nothing but weights, and is at least half as large as one of them.

    Rows gathered from a table depend on ids, a normalisation on activations: neither is a copy.
    """
    roots: dict[str, Operand] = {}
    copies = []
    for launch in launches:
        sources = [roots.get(operand.base, operand) for operand in launch.reads]
        matrices = [source for source in sources if is_weight_like(source) and source.is_matrix]
        depends_on_data = any(not is_weight_like(source) and source.kind is not OperandKind.CONSTANT for source in sources)
        if launch.kind is not LaunchKind.GENERATED or depends_on_data or not matrices:
            continue
        source = max(matrices, key=lambda operand: operand.num_elements or 0)
        for written in launch.writes:
            roots[written.base] = source
            if 2 * (written.num_elements or 0) >= (source.num_elements or 0) > 0:
                copies.append(Copy(launch, source, written))
    return tuple(copies)


def cache_copies(launches: tuple[Launch, ...], capacity: int) -> tuple[Copy, ...]:
    """Generated kernels that read a cache, or a copy of one, and write something of its size somewhere else."""
    roots: dict[str, Operand] = {}
    copies = []
    for launch in launches:
        if launch.kind is not LaunchKind.GENERATED:
            continue
        caches = [operand for operand in launch.reads if operand.kind is OperandKind.CACHE or operand.base in roots]
        in_place = launch.bases_in_place
        for written in launch.writes:
            if written.kind is OperandKind.CACHE or not caches:
                continue
            source = max(caches, key=lambda operand: operand.num_elements or 0)
            # A kernel that updates a cache in place also writes activations, which a long step makes as large as a cache.
            wide = capacity in written.dims or not any(cache.base in in_place for cache in caches)
            if wide and 2 * (written.num_elements or 0) >= (source.num_elements or 0) > 0:
                roots[written.base] = roots.get(source.base, source)
                copies.append(Copy(launch, source, written))
    return tuple(copies)


def readers(launches: tuple[Launch, ...], base: str) -> tuple[tuple[Launch, int], ...]:
    """Launches that read a tensor, with the index of the operand."""
    return tuple((launch, index) for launch in launches for index, operand in enumerate(launch.inputs) if operand.base == base)


def feeds(launches: tuple[Launch, ...], base: str) -> tuple[tuple[Launch, int], ...]:
    """Launches that are no generated kernels and read a tensor, directly or through generated kernels that only move it."""
    found: list[tuple[Launch, int]] = []
    waiting, seen = [base], {base}
    while waiting:
        for launch, index in readers(launches, waiting.pop()):
            if launch.kind is not LaunchKind.GENERATED:
                found.append((launch, index))
            elif launch.only_moves:
                fresh = [written.base for written in launch.writes if written.base not in seen]
                waiting += fresh
                seen.update(fresh)
    return tuple(found)


def inputs_behind(program: Program, launches: tuple[Launch, ...]) -> Mapping[str, frozenset[str]]:
    """Stored names of the program's inputs that each tensor depends on."""
    behind: dict[str, frozenset[str]] = {}
    for launch in launches:
        sources = frozenset[str]()
        for operand in launch.inputs:
            own = {stored_name(operand.base)} if operand.base in program.inputs else set()
            sources |= behind.get(operand.base, frozenset()) | own
        for written in launch.writes:
            behind[written.base] = behind.get(written.base, frozenset()) | sources
    return behind

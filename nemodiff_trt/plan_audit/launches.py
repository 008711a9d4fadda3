"""What a program launches: generated kernels, fused attention, matrix multiplications, runtime fusions."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum

from nemodiff_trt.plan_audit.program import Operation, Program
from nemodiff_trt.plan_audit.tensors import Operand, OperandKind, TensorTable, distinct, dtype_label

# Lines of a program that launch nothing on the device.
_NO_LAUNCH = frozenset({"shape_call", "signal", "wait", "assert", "allocate", "deallocate", "copy", "memset", "label"})
_LAUNCHES = frozenset({"function", "fully_connected", "runtime_fusion"})
_ATTENTION = re.compile(r"^_?\w*mha\w*$")
_GEMMS = frozenset({"fully_connected", "matmul", "batched_gemm", "gemm"})
# A generated kernel is named after its operations, each cut to four letters; "Etc" ends a name that grew too long.
_PREFIX = "__myl_"
_CUT_OFF = "Etc"
_MOVES = frozenset({"Move", "Resh", "Tran", "Repl", "Slic", "Conc", "Copy", "Pad", "Spli", "Cast", "Sque", "Unsq", "Expa"})


class LaunchKind(StrEnum):
    """Who made the kernel."""

    GENERATED = "generated"
    ATTENTION = "attention"
    GEMM = "gemm"
    FUSION = "fusion"
    OTHER = "other"


@dataclass(frozen=True, slots=True)
class Launch:
    """One kernel launch. `inputs` are in the operation's order, `reads` and `writes` hold each memory once.

    `gemms` holds the operand dtypes (left, right) of every matrix multiplication in it, `matrices` which of the inputs are
    operands of one: what else a multiplication takes are factors and scales.
    """

    kind: LaunchKind
    name: str
    inputs: tuple[Operand, ...]
    reads: tuple[Operand, ...]
    writes: tuple[Operand, ...]
    gemms: tuple[tuple[str, str], ...] = ()
    matrices: frozenset[int] = frozenset()

    @property
    def operations(self) -> tuple[str, ...]:
        """Operations a generated kernel is named after."""
        return tuple(re.findall(r"[A-Z][a-z]*", self.name.removeprefix(_PREFIX))) if self.kind is LaunchKind.GENERATED else ()

    @property
    def only_moves(self) -> bool:
        """Whether its name promises that it moves and converts data and nothing else."""
        return bool(self.operations) and set(self.operations) <= _MOVES

    def may_hold(self, operation: str) -> bool:
        """Whether `operation` is in its name, or may be in the part that was cut off."""
        return operation in self.operations or _CUT_OFF in self.operations

    @property
    def bases_in_place(self) -> frozenset[str]:
        """Memory it both reads and writes."""
        return frozenset(operand.base for operand in self.reads) & frozenset(operand.base for operand in self.writes)

    @property
    def label(self) -> str:
        """Its name in reports; a matrix multiplication goes by its weight, with layer numbers replaced."""
        if self.kind not in (LaunchKind.GEMM, LaunchKind.FUSION):
            return self.name
        weights = [operand.label for operand in self.inputs if operand.kind is OperandKind.WEIGHT]
        return f"gemm {re.sub(r'(?<=[._])[0-9]+(?=[._])', '*', weights[0])}" if weights else self.kind.value


def read_launches(program: Program, table: TensorTable) -> tuple[Launch, ...]:
    """Launches of one run of the program. A kernel with conditional variants is one launch: one of them runs."""
    bodies = dict(enumerate(program.bodies))
    return tuple(_launch(operation, table, bodies) for operation in program.main if operation.kind not in _NO_LAUNCH)


def _launch(operation: Operation, table: TensorTable, bodies: dict[int, Program]) -> Launch:
    inputs = tuple(table.operand(name) for name in operation.inputs)
    outputs = tuple(table.operand(name) for name in operation.outputs)
    kind, gemms, matrices = LaunchKind.OTHER, tuple[tuple[str, str], ...](), frozenset[int]()
    if operation.kind == "function":
        kind = LaunchKind.ATTENTION if _ATTENTION.match(operation.name) else LaunchKind.GENERATED
    elif operation.kind in _GEMMS:
        dtypes = [dtype_label(operand.dtype) for operand in inputs[:2]]
        kind, gemms, matrices = LaunchKind.GEMM, (_pair(dtypes),), frozenset({0, 1})
    elif operation.kind == "runtime_fusion":
        body = bodies.get(operation.binary) if operation.binary is not None else None
        kind = LaunchKind.FUSION
        gemms, matrices = _read_body(body) if body else ((), frozenset())
    elif _ATTENTION.match(operation.kind):
        kind = LaunchKind.ATTENTION
    # A damaged plan may give an operation fewer inputs than its body or its kind has.
    present = matrices & frozenset(range(len(inputs)))
    return Launch(kind, operation.name or operation.kind, inputs, distinct(inputs), distinct(outputs), gemms, present)


def _pair(dtypes: list[str]) -> tuple[str, str]:
    left, right, *_ = [*dtypes, "unknown", "unknown"]
    return left, right


def _read_body(body: Program) -> tuple[tuple[tuple[str, str], ...], frozenset[int]]:
    """Operand dtypes of a fusion's multiplications, and which of the fusion's inputs become their matrices."""
    makers = {name: operation for operation in body.main if operation.kind not in _GEMMS for name in operation.outputs}
    gemms, matrices = [], set[str]()
    for operation in body.main:
        if operation.kind in _GEMMS:
            names = operation.inputs[:2]
            gemms.append(
                _pair([dtype_label(body.tensors[name].dtype) if name in body.tensors else "unknown" for name in names])
            )
            matrices.update(names)
    waiting = list(matrices)
    while waiting:
        # A fusion may convert or scale a matrix before it multiplies.
        maker = makers.get(waiting.pop())
        fresh = [name for name in (maker.inputs if maker else ()) if name not in matrices]
        matrices.update(fresh)
        waiting += fresh
    return tuple(gemms), frozenset(index for index, name in enumerate(body.inputs) if name in matrices)


def unknown_kinds(program: Program) -> tuple[str, ...]:
    """Kinds of operations that this module has no rule for; they are counted as launches."""
    kinds = dict.fromkeys(operation.kind for operation in program.main)
    return tuple(kind for kind in kinds if kind not in _NO_LAUNCH | _LAUNCHES | _GEMMS and not _ATTENTION.match(kind))


def gemm_counts(launches: tuple[Launch, ...]) -> dict[str, int]:
    """Matrix multiplications by operand dtypes, the commonest first."""
    counts: dict[str, int] = {}
    for launch in launches:
        for left, right in launch.gemms:
            label = left if left == right else f"{left} x {right}"
            counts[label] = counts.get(label, 0) + 1
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def attention_counts(launches: tuple[Launch, ...]) -> dict[str, int]:
    """Fused attention kernels by name."""
    counts: dict[str, int] = {}
    for launch in launches:
        if launch.kind is LaunchKind.ATTENTION:
            counts[launch.name] = counts.get(launch.name, 0) + 1
    return dict(sorted(counts.items()))

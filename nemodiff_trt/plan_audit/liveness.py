"""How much memory the intermediate results of a step take: what is alive between the kernels, at its largest."""

from __future__ import annotations

from nemodiff_trt.plan_audit.launches import Launch
from nemodiff_trt.plan_audit.program import Program
from nemodiff_trt.plan_audit.tensors import Operand, OperandKind


def peak_activation_bytes(program: Program, launches: tuple[Launch, ...]) -> int:
    """Largest sum of intermediate tensors that are alive at one launch, in bytes.

    An estimate of what an engine allocates: alignment and the workspace of kernels come on top, and a compiler may place
    tensors less well than they fit. Inputs and outputs of the engine are not counted, they are bound from outside.
    """
    bound = set(program.inputs) | set(program.outputs)
    births: dict[str, int] = {}
    deaths: dict[str, int] = {}
    sizes: dict[str, int] = {}
    for index, launch in enumerate(launches):
        for operand in (*launch.reads, *launch.writes):
            if operand.kind is OperandKind.ACTIVATION and operand.base not in bound:
                births.setdefault(operand.base, index)
                deaths[operand.base] = index
                sizes[operand.base] = max(sizes.get(operand.base, 0), _base_bytes(operand))
    changes = [0] * (len(launches) + 1)
    for name, size in sizes.items():
        changes[births[name]] += size
        changes[deaths[name] + 1] -= size
    peak = alive = 0
    for change in changes:
        alive += change
        peak = max(peak, alive)
    return peak


def _base_bytes(operand: Operand) -> int:
    """Bytes of the tensor that owns the memory, 0 if its size is unknown."""
    return (operand.base_elements or 0) * operand.bits // 8

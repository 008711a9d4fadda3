"""Last pass of every pipeline: the graph's inputs and outputs are those of the step contract, in name, order, dtype and axes.

Scratch outputs, which a target asked for, are no part of it. A check, not a rewrite: it fires once when
everything agrees, and otherwise gives one reason per tensor that does not.
"""

from __future__ import annotations

from torch import Tensor, fx

from nemodiff_trt.contract import TensorSpec, step_contract
from nemodiff_trt.passes.axes import axis_letters, shape_with_letters
from nemodiff_trt.passes.base import PassOptions, PassReport, Refusal
from nemodiff_trt.passes.graph import NODE_VALUE, StepGraph


def verify_contract(graph: StepGraph, options: PassOptions) -> PassReport:
    """Count: 1 when the graph keeps the contract of its role."""
    contract = step_contract(options.role, options.model, options.precision, options.keep_logits)
    letters = axis_letters(graph)
    promised = {name: node for name, node in graph.outputs.items() if name not in graph.scratch}
    refusals = [
        *_differences(graph.inputs, contract.inputs, letters),
        *_differences(promised, contract.outputs, letters),
    ]
    return PassReport(verify_contract.__name__, 0 if refusals else 1, tuple(refusals))


def _differences(nodes: dict[str, fx.Node], specs: tuple[TensorSpec, ...], letters: dict[str, str]) -> list[Refusal]:
    wanted = tuple(spec.name for spec in specs)
    if tuple(nodes) != wanted:
        odd = next((name for name in (*wanted, *nodes) if name not in nodes or name not in wanted), "order")
        return [Refusal(odd, f"the contract has {', '.join(wanted)}; the graph has {', '.join(nodes)}")]
    found = []
    for spec in specs:
        value: Tensor = nodes[spec.name].meta[NODE_VALUE]
        actual = (str(value.dtype).removeprefix("torch."), shape_with_letters(value, letters))
        if actual != (spec.dtype, spec.shape):
            found.append(Refusal(spec.name, f"is {actual[0]} {actual[1]}, the contract says {spec.dtype} {spec.shape}"))
    return found

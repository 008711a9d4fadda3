"""Last pass of every pipeline: the graph has exactly the contract's inputs and outputs, and only operators the target takes.

It never fires; a graph that breaks the contract is an error.
"""

from __future__ import annotations

from dataclasses import dataclass

from nemodiff_trt.contract import StepContract
from nemodiff_trt.errors import PassError
from nemodiff_trt.passes.base import PassReport, StepGraph, weight_name


@dataclass(frozen=True, slots=True)
class VerifyContract:
    """Checks names and order of inputs and outputs, operators, and that every weight has a layout."""

    contract: StepContract
    operators: frozenset[object]
    name: str = "verify_contract"

    def __call__(self, graph: StepGraph) -> PassReport:
        _compare("inputs", tuple(graph.placeholders()), tuple(spec.name for spec in self.contract.inputs))
        _compare("outputs", graph.output_names, tuple(spec.name for spec in self.contract.outputs))
        for node in graph.graph.nodes:
            if node.op == "call_function" and node.target not in self.operators:
                raise PassError(f"{self.name}: node {node.name} calls {node.target}, which the target does not take")
            if weight_name(node) is not None and weight_name(node) not in graph.layouts:
                raise PassError(f"{self.name}: weight {weight_name(node)} has no layout")
        return PassReport(self.name, 0)


def _compare(what: str, found: tuple[str, ...], wanted: tuple[str, ...]) -> None:
    if found != wanted:
        first = next((pair for pair in zip(found, wanted, strict=False) if pair[0] != pair[1]), None)
        detail = f"{first[0]} in place of {first[1]}" if first else f"{len(found)} in place of {len(wanted)}"
        raise PassError(f"verify_contract: {what} differ from the step contract: {detail}")

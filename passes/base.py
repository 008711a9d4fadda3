"""The step graph, what a pass is, and how a pipeline of passes is run and checked.

A step graph is a plain `torch.fx` graph: placeholders named by the step contract, `get_attr` nodes for weights, named as in the
decoder. A pass edits it in place and reports how often it fired; a pipeline states the counts it expects and fails otherwise, so
that a pattern which stopped matching is an error and not a slower or wrong engine.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, fx, nn

from nemodiff_trt.bundle import WeightLayout
from nemodiff_trt.errors import PassError


@dataclass(slots=True)
class StepGraph:
    """One step of decoding, from the contract's inputs to its outputs.

    Args:
        module: flat signature; `module.graph` is what passes edit.
        output_names: names of the values the output node returns, in order.
        parameters: all decoder parameters by name, those of the adapter included; on the meta device when only shapes matter.
        layouts: how each weight of the graph will be stored; filled by `externalize_weights`.
        derived: weights made by passes: name to how it is made of decoder parameters.
    """

    module: fx.GraphModule
    output_names: tuple[str, ...]
    parameters: Mapping[str, Tensor]
    layouts: dict[str, WeightLayout] = field(default_factory=dict)
    derived: dict[str, WeightLayout] = field(default_factory=dict)

    @property
    def graph(self) -> fx.Graph:
        return self.module.graph

    @property
    def output_node(self) -> fx.Node:
        return next(node for node in reversed(self.graph.nodes) if node.op == "output")

    def placeholders(self) -> dict[str, fx.Node]:
        """Input nodes by contract name, in order."""
        return {str(node.target): node for node in self.graph.nodes if node.op == "placeholder"}

    def weight(self, name: str) -> Tensor:
        """Value of the weight `name`."""
        owner, _, leaf = name.rpartition(".")
        value: Tensor = getattr(self.module.get_submodule(owner), leaf)
        return value

    def add_weight(self, name: str, value: Tensor) -> fx.Node:
        """Register a weight and return a `get_attr` node for it at the current insertion point."""
        *owners, leaf = name.split(".")
        module: nn.Module = self.module
        for owner in owners:
            if not hasattr(module, owner):
                module.add_module(owner, nn.Module())
            module = getattr(module, owner)
        if not hasattr(module, leaf):
            module.register_buffer(leaf, value, persistent=False)
        return self.graph.get_attr(name)

    def calls(self, target: object) -> list[fx.Node]:
        """Call nodes of one operator, in order."""
        return [node for node in self.graph.nodes if node.op == "call_function" and node.target is target]

    def tidy(self) -> None:
        """Drop dead nodes, check the graph, and make it executable again."""
        self.graph.eliminate_dead_code()
        self.graph.lint()
        self.module.recompile()


@dataclass(frozen=True, slots=True)
class Refusal:
    """A place where a pass nearly fired, and why it did not."""

    node: str
    reason: str


@dataclass(frozen=True, slots=True)
class PassReport:
    """What one pass did: how often it fired, and its near misses."""

    name: str
    num_fired: int
    refusals: tuple[Refusal, ...] = ()


class Pass(Protocol):
    """Edits a step graph in place. A second run finds nothing to do."""

    @property
    def name(self) -> str: ...

    def __call__(self, graph: StepGraph) -> PassReport: ...


@dataclass(frozen=True, slots=True)
class PlannedPass:
    """A pass and the number of times it has to fire."""

    step: Pass
    expected_count: int


def run_pipeline(graph: StepGraph, pipeline: tuple[PlannedPass, ...]) -> tuple[PassReport, ...]:
    """Run all passes in order.

    Raises:
        PassError: a pass fired another number of times than planned; the message carries its refusals.
    """
    reports = []
    for planned in pipeline:
        report = planned.step(graph)
        if report.num_fired != planned.expected_count:
            reasons = "; ".join(f"{refusal.node}: {refusal.reason}" for refusal in report.refusals) or "no near miss"
            raise PassError(f"{report.name}: fired {report.num_fired} times, expected {planned.expected_count} ({reasons})")
        graph.tidy()
        reports.append(report)
    return tuple(reports)


def weight_name(node: object) -> str | None:
    """Name of the weight a `get_attr` node reads, None for any other argument."""
    return str(node.target) if isinstance(node, fx.Node) and node.op == "get_attr" else None


LINEAR = torch.ops.aten.linear.default

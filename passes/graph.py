"""`StepGraph`: the FX graph of one step with named inputs, outputs and weights; what passes rewrite and targets lower.

Inputs are placeholders and weights are `get_attr` nodes whose targets are the names of the contract and of the weight file. No
weight data is attached: every node carries a fake tensor in `meta["val"]`, and `weights` says how each stored tensor is made.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from nemodiff_trt.bundle import WeightLayout
from nemodiff_trt.errors import PassError

NODE_VALUE = "val"
# Key of what a pass decided about an operator of the project: the form it is lowered as, in place of the target's usual one.
NODE_FORM = "form"
# Key of the operator's name, on what stands for one after a pass replaced it.
NODE_OPERATOR = "operator"


@dataclass(slots=True)
class StepGraph:
    """A step under transformation. Output order is that of `output_names`.

    `scratch` names outputs beyond the step contract: a target wants them to exist, nobody reads them.
    """

    graph: fx.Graph
    output_names: tuple[str, ...]
    weights: dict[str, WeightLayout]
    scratch: tuple[str, ...] = ()

    def copy(self) -> StepGraph:
        """Independent graph; the fake tensors on its nodes are shared."""
        return StepGraph(copy.deepcopy(self.graph), self.output_names, dict(self.weights), self.scratch)

    @property
    def inputs(self) -> dict[str, fx.Node]:
        """Placeholders by name, in order."""
        return {str(node.target): node for node in self.graph.nodes if node.op == "placeholder"}

    @property
    def outputs(self) -> dict[str, fx.Node]:
        """Nodes behind the named outputs, in order."""
        return dict(zip(self.output_names, self._output_node.args[0], strict=True))  # type: ignore[arg-type]

    @property
    def _output_node(self) -> fx.Node:
        return self.graph.output_node()

    def set_outputs(self, outputs: Mapping[str, fx.Node]) -> None:
        """Replace all outputs."""
        self._output_node.args = (tuple(outputs.values()),)
        self.output_names = tuple(outputs)

    def calls(self, *targets: Any) -> list[fx.Node]:
        """Nodes that call one of `targets`, in order of execution."""
        return [node for node in self.graph.nodes if node.op == "call_function" and node.target in targets]

    def call(self, before: fx.Node, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        """Insert a call before a node and infer its fake result."""
        with self.graph.inserting_before(before):
            node = self.graph.call_function(target, args, kwargs)
        value_args, value_kwargs = fx.node.map_arg((args, kwargs), lambda argument: argument.meta[NODE_VALUE])
        node.meta[NODE_VALUE] = target(*value_args, **value_kwargs)
        return node

    def pieces(self, node: fx.Node) -> list[fx.Node]:
        """One `getitem` after `node` for each of the several tensors it returns."""
        following = node.next
        return [self.call(following, operator.getitem, node, index) for index in range(len(node.meta[NODE_VALUE]))]

    def add_input(self, name: str, after: str, value: Tensor) -> fx.Node:
        """Insert a placeholder behind the input `after`."""
        with self.graph.inserting_after(self.inputs[after]):
            node = self.graph.placeholder(name)
        node.meta[NODE_VALUE] = value
        return node

    def add_weight(self, name: str, layout: WeightLayout, value: Tensor) -> fx.Node:
        """The node of weight `name`, created on first use.

        Raises:
            PassError: the graph has a weight of this name that is stored in another way.
        """
        if name in self.weights:
            if self.weights[name] != layout:
                raise PassError(f"{name}: laid out as {self.weights[name]} and as {layout}")
            return next(node for node in self.weight_nodes() if node.target == name)
        with self.graph.inserting_after(list(self.inputs.values())[-1]):
            node = self.graph.create_node("get_attr", name)
        node.meta[NODE_VALUE] = value
        self.weights[name] = layout
        return node

    def weight_nodes(self) -> list[fx.Node]:
        return [node for node in self.graph.nodes if node.op == "get_attr"]

    def tidy(self) -> int:
        """Remove nodes and weights that reach no output. Returns how many nodes went."""
        before = len(self.graph.nodes)
        self.graph.eliminate_dead_code()
        self.graph.lint()
        used = {str(node.target) for node in self.weight_nodes()}
        self.weights = {name: layout for name, layout in self.weights.items() if name in used}
        return before - len(self.graph.nodes)

    def run(self, weights: Mapping[str, Tensor], inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Execute eagerly with stored tensors `weights` by name. Oracle of the passes' tests."""
        results = _Interpreter(self.graph, weights).run(*(inputs[name] for name in self.inputs))
        return dict(zip(self.output_names, results, strict=True))


class _Interpreter(fx.Interpreter):
    """Runs a graph whose attributes live in a dictionary."""

    def __init__(self, graph: fx.Graph, weights: Mapping[str, Tensor]) -> None:
        super().__init__(torch.nn.Module(), graph=graph)
        self._weights = weights

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:  # noqa: ARG002 - the signature of the base
        return self._weights[target]


def is_call(node: object, target: Any) -> bool:
    """Whether `node` is a call of `target`."""
    return isinstance(node, fx.Node) and node.op == "call_function" and node.target == target


def operator_name(node: fx.Node) -> str | None:
    """Name of the project's operator that `node` calls, None for any other node."""
    target = node.target
    is_own = isinstance(target, torch._ops.OpOverload) and target.namespace == "nemodiff"  # noqa: SLF001 - the type of an operator
    return target.name().removeprefix("nemodiff::") if is_own else None  # type: ignore[union-attr]


def weight_name(node: object) -> str | None:
    """Name of the weight `node` stands for, None for any other node."""
    return str(node.target) if isinstance(node, fx.Node) and node.op == "get_attr" else None


def num_calls(graphs: Iterable[StepGraph]) -> int:
    """Calls in all `graphs` together."""
    return sum(node.op == "call_function" for graph in graphs for node in graph.graph.nodes)

"""Step graphs written by hand, and the numbers to run any step graph with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx

from nemodiff_trt.bundle import AdapterFacts, Combine, WeightLayout
from nemodiff_trt.passes.base import PassOptions
from nemodiff_trt.passes.graph import NODE_VALUE, StepGraph, is_call
from nemodiff_trt.plugins.attention import attend_visible, visible_slots
from nemodiff_trt.vocabulary import Role
from support.checkpoints import tiny_config

# Float64 runs differ by rounding alone: a fused or merged matrix multiplies the same numbers in another order.
EXACT = {"rtol": 1e-10, "atol": 1e-10}
# That of `random_decoder`.
ADAPTER = AdapterFacts(rank=4, scale=4.0)
CACHE_CAPACITY = 64


def pass_options(role: Role = Role.VERIFY, **changes: Any) -> PassOptions:
    """Options of a build of the tiny model with its adapter, for a cache that reaches positions whose queries are scaled."""
    facts = {"role": role, "model": tiny_config(), "cache_capacity": CACHE_CAPACITY, "adapter": ADAPTER}
    return PassOptions(**(facts | changes))


class GraphBuilder:
    """Writes a step graph node by node. Values are tensors on the meta device, shapes are fixed numbers.

    Inputs come first, then weights and calls; `finish` names the outputs.
    """

    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        self.dtype = dtype
        self.step = StepGraph(fx.Graph(), (), {})
        self._end = self.step.graph.output(())

    def input(self, name: str, *shape: int, dtype: torch.dtype | None = None) -> fx.Node:
        with self.step.graph.inserting_before(self._end):
            node = self.step.graph.placeholder(name)
        node.meta[NODE_VALUE] = torch.empty(shape, dtype=dtype or self.dtype, device="meta")
        return node

    def weight(self, name: str, *shape: int, layout: WeightLayout | None = None) -> fx.Node:
        """The weight of this name; `layout` counts when it is first mentioned."""
        value = torch.empty(shape, dtype=self.dtype, device="meta")
        stored = layout or WeightLayout((name,), False, str(self.dtype).removeprefix("torch."))
        return self.step.add_weight(name, self.step.weights.get(name, stored), value)

    def linear(self, x: fx.Node, name: str, num_out: int) -> fx.Node:
        return self.call(torch.ops.aten.linear.default, x, self.weight(name, num_out, x.meta[NODE_VALUE].shape[-1]))

    def call(self, target: Any, *args: Any) -> fx.Node:
        return self.step.call(self._end, target, *args)

    def finish(self, **outputs: fx.Node) -> StepGraph:
        self.step.set_outputs(outputs)
        self.step.graph.lint()
        return self.step


def attention_graph(out_names: tuple[str, ...] = (), causal: bool = True, residual: bool = False) -> StepGraph:
    """Attention of 2 heads over rotated queries [2,3,8] and a cache of 8, then one linear to width 6 for each of `out_names`.

    Outputs `mixed` without linears, otherwise `out_<n>`; with `residual` also `doubled`, the first of them added to itself.
    """
    build = GraphBuilder()
    query, cache = build.input("query", 2, 3, 8), build.input("cache", 2, 1, 8, 4)
    length = build.input("cache_length", 2, dtype=torch.int64)
    mixed = build.call(torch.ops.nemodiff.attention.default, query, cache, cache, length, 2, causal)
    outputs = {f"out_{index}": build.linear(mixed, name, 6) for index, name in enumerate(out_names)} or {"mixed": mixed}
    if residual:
        outputs["doubled"] = build.call(torch.ops.aten.add.Tensor, outputs["out_0"], outputs["out_0"])
    return build.finish(**outputs)


def operators(graph: StepGraph) -> list[str]:
    """Called operators in order, without namespace and overload."""
    calls = [node.target for node in graph.graph.nodes if node.op == "call_function"]
    return [str(getattr(target, "overloadpacket", target.__name__)).rpartition(".")[2] for target in calls]


def directions(graph: StepGraph) -> list[object]:
    """The `causal` argument of every attention, or of its mask where the operator was decomposed."""
    whole = [node.args[5] for node in graph.calls(torch.ops.nemodiff.attention.default)]
    masks = [node.args[3] for node in graph.calls(attend_visible)]
    return whole + [mask.args[3] for mask in masks if is_call(mask, visible_slots)]  # type: ignore[union-attr]


def listing(graph: StepGraph) -> tuple[str, tuple[str, ...], dict[str, WeightLayout]]:
    """Everything a pass can change: nodes with their arguments, outputs, layouts."""
    return str(graph.graph), graph.output_names, dict(graph.weights)


def random_parameters(graph: StepGraph, **extra: tuple[int, ...]) -> dict[str, Tensor]:
    """Float64 numbers for every weight of a graph whose weights are all stored as they are, and for `extra` shapes."""
    generator = torch.Generator().manual_seed(0)
    shapes = {str(node.target): tuple(node.meta[NODE_VALUE].shape) for node in graph.weight_nodes()} | extra
    return {name: torch.randn(shape, generator=generator, dtype=torch.float64) for name, shape in shapes.items()}


def random_inputs(graph: StepGraph) -> dict[str, Tensor]:
    """Float64 numbers for every input of a graph; integer inputs, all of them lengths or positions, count 0, 1, 2, ..."""
    generator = torch.Generator().manual_seed(1)
    inputs = {}
    for name, node in graph.inputs.items():
        value = node.meta[NODE_VALUE]
        if value.is_floating_point():
            inputs[name] = torch.randn(value.shape, generator=generator, dtype=torch.float64)
        else:
            inputs[name] = torch.arange(value.numel()).reshape(value.shape)
    return inputs


def stored_weights(
    weights: Mapping[str, WeightLayout], parameters: Mapping[str, Tensor], adapter_scale: float = ADAPTER.scale
) -> dict[str, Tensor]:
    """Tensors a weight file would hold, from decoder parameters (rotary tables among them); keeps their dtype."""
    stored = {}
    for name, layout in weights.items():
        if layout.combine is Combine.ROTARY_TABLE:
            value = parameters[name]
        elif layout.combine is Combine.MERGE_ADAPTER:
            base, down, up = (parameters[source] for source in layout.sources)
            value = base + adapter_scale * (up @ down)
        else:
            value = torch.cat([parameters[source] for source in layout.sources])
        stored[name] = value.t().contiguous() if layout.transposed else value
    return stored


def run_graph(graph: StepGraph, parameters: Mapping[str, Tensor], inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Outputs of a graph by name, computed from decoder parameters. `inputs` keep their content, even if it writes in place."""
    return graph.run(stored_weights(graph.weights, parameters), {name: value.clone() for name, value in inputs.items()})

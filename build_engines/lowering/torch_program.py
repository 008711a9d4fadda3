"""Lower a step graph of plain torch to a `torch.export` program over flat tensors: inputs of the step, then weights.

The weights are inputs like the others, so a program holds no data and can be made without reading a checkpoint. Caches are
written in place and are not returned.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch._subclasses import FakeTensorMode
from torch.export import Dim, ExportedProgram
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from nemodiff_trt.contract import CONFIDENCE, LOGITS, TOKEN
from nemodiff_trt.errors import LoweringError
from nemodiff_trt.passes.axes import axis_letters, shape_with_letters
from nemodiff_trt.passes.graph import NODE_FORM, NODE_VALUE, StepGraph, operator_name
from nemodiff_trt.plugins.cache_update import write_cache

# Any sizes above 1 will do: the exporter takes 0 and 1 for constants.
_EXAMPLE_BATCH, _EXAMPLE_STEP = 2, 3


@dataclass(frozen=True, slots=True)
class TorchProgram:
    """An exported step. It takes `inputs` and then `weights` (stored names) and returns `outputs`: flat, in this order."""

    program: ExportedProgram
    inputs: tuple[str, ...]
    weights: tuple[str, ...]
    outputs: tuple[str, ...]


def lower_to_torch(graph: StepGraph, cache_capacity: int) -> TorchProgram:
    """Export `graph` for the CPU with dynamic B and S and a cache of `cache_capacity` slots.

    Args:
        graph: after its pipeline, which left no operator of `torch.ops.nemodiff` but plugins, and caches that are written in
            place.
        cache_capacity: K.

    Raises:
        LoweringError: the graph still holds such an operator, or returns a cache that is not an input.
    """
    _check(graph)
    letters, sizes = axis_letters(graph), {"B": _EXAMPLE_BATCH, "S": _EXAMPLE_STEP, "K": cache_capacity}
    dims = {"B": Dim("B", min=1), "S": Dim("S", min=1, max=cache_capacity)}
    examples: list[Tensor] = []
    dynamic: list[dict[int, Any]] = []
    with FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=False):
        for node in (*graph.inputs.values(), *graph.weight_nodes()):
            shape = shape_with_letters(node.meta[NODE_VALUE], letters)
            extents = [sizes[extent] if isinstance(extent, str) else extent for extent in shape]
            examples.append(torch.empty(extents, dtype=node.meta[NODE_VALUE].dtype))
            dynamic.append({axis: dims[extent] for axis, extent in enumerate(shape) if extent in ("B", "S")})
    module, outputs = _flat_module(graph)
    # The module takes its arguments as they are written: one dictionary of dynamic axes for each.
    program = torch.export.export(module, tuple(examples), dynamic_shapes=tuple(dynamic))
    weights = tuple(str(node.target) for node in graph.weight_nodes())
    return TorchProgram(program, tuple(graph.inputs), weights, outputs)


def _check(graph: StepGraph) -> None:
    for node in graph.graph.nodes:
        if operator_name(node) is not None and NODE_FORM not in node.meta:
            raise LoweringError(f"{node.name}: {node.target} was not decomposed")
    for name, node in graph.outputs.items():
        if name not in (TOKEN, CONFIDENCE, LOGITS) and node.target is not write_cache:
            raise LoweringError(f"{name}: not written in place, the engine would copy the cache")


def _flat_module(graph: StepGraph) -> tuple[fx.GraphModule, tuple[str, ...]]:
    """The step as a function whose last arguments are the weights, and the names of what it returns."""
    flat, copied = fx.Graph(), {}
    for name, node in graph.inputs.items():
        copied[node] = flat.placeholder(name)
    for index, node in enumerate(graph.weight_nodes()):
        # Names of weights have dots, which no argument may have.
        copied[node] = flat.placeholder(f"weight_{index}")
    for node in graph.graph.nodes:
        if node.op == "call_function":
            copied[node] = flat.node_copy(node, lambda source: copied[source])
    returned = {name: node for name, node in graph.outputs.items() if node.target is not write_cache}
    flat.output(tuple(copied[node] for node in returned.values()))
    return fx.GraphModule(torch.nn.Module(), flat), tuple(returned)

"""`torch.compile(decoder, backend="nemodiff")`: the project's passes on the graph that Dynamo traced, then Inductor.

Only passes that need to know neither role nor target run: the fusions of projections and the decomposition of the operators.
Caches keep the meaning of the eager decoder, which returns new ones; engines that write in place are made by `build_engines`.

Matrices that a fusion joins are joined once, when the graph is compiled, as torch's own freezing does: changes of these
parameters afterwards are not seen. So parameters that may be trained are refused. All others are read anew at each call.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from nemodiff_trt.bundle import WeightLayout
from nemodiff_trt.errors import InvalidInputError
from nemodiff_trt.passes.base import Pass, PassOptions, PassReport
from nemodiff_trt.passes.decompose_plugins import decompose_plugins
from nemodiff_trt.passes.fuse_gate_up import fuse_gate_up
from nemodiff_trt.passes.fuse_qkv import fuse_qkv
from nemodiff_trt.passes.graph import NODE_VALUE, StepGraph

# The decomposition last: the fusions look for the operators.
PASSES: tuple[Pass, ...] = (fuse_qkv, fuse_gate_up, decompose_plugins)
# All that these passes ask of a build.
_NO_BUILD = cast(PassOptions, SimpleNamespace(plugins=frozenset()))
# What Dynamo records, as the operator that passes look for.
_ATEN: dict[object, Any] = {
    functional.linear: torch.ops.aten.linear.default,
    functional.silu: torch.ops.aten.silu.default,
    operator.mul: torch.ops.aten.mul.Tensor,
}
_DYNAMO_VALUE = "example_value"


@dataclass(frozen=True, slots=True)
class Rewritten:
    """A module of the same signature, and how often each pass fired."""

    module: fx.GraphModule
    reports: tuple[PassReport, ...]


def nemodiff_backend(module: fx.GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
    """Compile a graph that Dynamo traced; found by the name "nemodiff" through the entry points of the installed package.

    Raises:
        InvalidInputError: a parameter requires a gradient. Dynamo wraps it in an error of its own.
    """
    from torch._inductor.compile_fx import compile_fx

    rewritten = rewrite_module(module, example_inputs)
    with _symbols_for_used_lengths():
        return cast(Callable[..., Any], compile_fx(rewritten.module, list(example_inputs)))


def rewrite_module(module: fx.GraphModule, example_inputs: Sequence[Any]) -> Rewritten:
    """Run `PASSES` on a traced graph. A graph without the project's operators comes back as it was.

    Args:
        module: graph with lifted parameters, as Dynamo gives it to a backend.
        example_inputs: one for each of its placeholders; parameters among them are the real ones.

    Raises:
        InvalidInputError: a parameter requires a gradient.
    """
    graph, parameters = _as_step_graph(module, example_inputs)
    reports = []
    for rewrite in PASSES:
        reports.append(rewrite(graph, _NO_BUILD))
        graph.tidy()
    return Rewritten(_as_module(module, graph, parameters), tuple(reports))


def _as_step_graph(module: fx.GraphModule, example_inputs: Sequence[Any]) -> tuple[StepGraph, dict[str, Tensor]]:
    """The traced graph in the form passes know, its parameters as weights; and these parameters by name."""
    graph, copied = fx.Graph(), {}
    weights: dict[str, WeightLayout] = {}
    parameters: dict[str, Tensor] = {}
    examples = iter(example_inputs)
    for node in module.graph.nodes:
        example = next(examples) if node.op == "placeholder" else None
        if isinstance(example, nn.Parameter):
            if example.requires_grad:
                allowed = "a frozen decoder: call requires_grad_(False) before compiling"
                raise InvalidInputError("requires_grad", str(node.target), allowed)
            name = str(node.target)
            copied[node] = graph.create_node("get_attr", name)
            weights[name] = WeightLayout((name,), False, str(example.dtype).removeprefix("torch."))
            parameters[name] = example.detach()
        else:
            copied[node] = graph.node_copy(node, lambda source: copied[source])
        if _DYNAMO_VALUE in node.meta:
            copied[node].meta[NODE_VALUE] = node.meta[_DYNAMO_VALUE]
    results = module.graph.output_node().args[0]
    assert isinstance(results, (tuple, list)), "Dynamo returns a tuple"
    step = StepGraph(graph, tuple(f"result_{index}" for index in range(len(results))), weights)
    _use_aten(step)
    return step, parameters


def _use_aten(graph: StepGraph) -> None:
    """Say what the passes match in aten and in overloads, as a capture does; all else stays as Dynamo wrote it."""
    for node in graph.graph.nodes:
        if node.op != "call_function":
            continue
        if isinstance(node.target, torch._ops.OpOverloadPacket) and str(node.target).startswith("nemodiff."):  # noqa: SLF001
            node.target = node.target.default
        elif node.target in _ATEN and all(isinstance(argument, fx.Node) for argument in node.args[:2]):
            # What follows the operands are defaults: no bias, not in place.
            defaults = [*node.args[2:], *node.kwargs.values()]
            if all(value is None or value is False for value in defaults):
                node.target, node.kwargs = _ATEN[node.target], {}
                node.args = tuple(argument for argument in node.args if isinstance(argument, fx.Node))


def _as_module(module: fx.GraphModule, graph: StepGraph, parameters: dict[str, Tensor]) -> fx.GraphModule:
    """The graph under the signature it came with: weights are its placeholders again, joined ones are attributes."""
    flat, copied, root = fx.Graph(), {}, nn.Module()
    given = {node.target: flat.node_copy(node) for node in module.graph.nodes if node.op == "placeholder"}
    for node in graph.graph.nodes:
        if node.target in given:
            copied[node] = given[node.target]
        elif node.op == "get_attr":
            sources = graph.weights[str(node.target)].sources
            root.register_buffer(str(node.target), torch.cat([parameters[source] for source in sources]))
            copied[node] = flat.get_attr(str(node.target))
        else:
            copied[node] = flat.node_copy(node, lambda source: copied[source])
    return fx.GraphModule(root, flat)


@contextmanager
def _symbols_for_used_lengths() -> Iterator[None]:
    """Let the used length of the cache, a number in a tensor, become a symbol; Dynamo allows this only under fullgraph=True."""
    context = torch._guards.TracingContext.try_get()  # noqa: SLF001
    mode = context.fake_mode if context is not None else None
    if mode is None:
        yield
        return
    before, mode.allow_scalar_outputs = mode.allow_scalar_outputs, True
    try:
        yield
    finally:
        mode.allow_scalar_outputs = before

"""transpose_linear_weights: matrices are stored as ONNX multiplies them, and nothing is transposed at run time."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import fx

from nemodiff_trt.passes.graph import NODE_VALUE, StepGraph
from nemodiff_trt.passes.transpose_linear_weights import transpose_linear_weights
from support.graphs import (
    EXACT,
    GraphBuilder,
    listing,
    operators,
    pass_options,
    random_inputs,
    random_parameters,
    run_graph,
)
from support.steps import EagerStep

aten = torch.ops.aten
OPTIONS = pass_options()

Write = Callable[[GraphBuilder, fx.Node], dict[str, fx.Node]]


def plain(build: GraphBuilder, x: fx.Node) -> dict[str, fx.Node]:
    return {"y": build.linear(x, "w", 5)}


def twice(build: GraphBuilder, x: fx.Node) -> dict[str, fx.Node]:
    return {"y": build.linear(x, "w", 5), "z": build.linear(build.call(aten.silu.default, x), "w", 5)}


def linear_graph(write: Write = plain) -> StepGraph:
    build = GraphBuilder()
    x = build.input("x", 2, 3, 4)
    build.input("ids", 2, 2, dtype=torch.int64)
    return build.finish(**write(build, x))


def test_fires() -> None:
    graph = linear_graph()
    report = transpose_linear_weights(graph, OPTIONS)
    assert (report.count, report.refusals) == (1, ())
    assert operators(graph) == ["matmul"]
    assert graph.weights["w"].transposed
    assert tuple(graph.weight_nodes()[0].meta[NODE_VALUE].shape) == (4, 5)


def test_a_shared_matrix_is_transposed_once() -> None:
    graph = linear_graph(twice)
    assert transpose_linear_weights(graph, OPTIONS).count == 2
    assert operators(graph) == ["matmul", "silu", "matmul"]
    assert graph.weights["w"].transposed
    assert tuple(graph.weight_nodes()[0].meta[NODE_VALUE].shape) == (4, 5)


def test_fires_on_every_linear_and_leaves_other_weights(captured: StepGraph) -> None:
    assert transpose_linear_weights(captured, OPTIONS).count == 7 * 2 + 1
    assert "linear" not in operators(captured)
    transposed = {name for name, layout in captured.weights.items() if layout.transposed}
    assert transposed == {name for name in captured.weights if "_proj" in name or "head" in name}


def has_a_bias(build: GraphBuilder, x: fx.Node) -> dict[str, fx.Node]:
    return {"y": build.call(aten.linear.default, x, build.weight("w", 5, 4), build.weight("bias", 5))}


def computes_its_weight(build: GraphBuilder, x: fx.Node) -> dict[str, fx.Node]:
    weight = build.call(aten.mul.Tensor, build.weight("w", 5, 4), 2.0)
    return {"y": build.call(aten.linear.default, x, weight)}


def is_the_embedding(build: GraphBuilder, x: fx.Node) -> dict[str, fx.Node]:
    return {"y": build.linear(x, "w", 5), "z": build.call(aten.embedding.default, build.weight("w"), build.step.inputs["ids"])}


@pytest.mark.parametrize(
    ("write", "reason"),
    [
        (has_a_bias, "the layer has a bias"),
        (computes_its_weight, "its matrix is not a stored weight"),
        (is_the_embedding, "w is also read as it is by embedding_default"),
    ],
)
def test_refuses(write: Write, reason: str) -> None:
    graph = linear_graph(write)
    before = listing(graph)
    report = transpose_linear_weights(graph, OPTIONS)
    assert (report.count, [refusal.reason for refusal in report.refusals]) == (0, [reason])
    assert listing(graph) == before


def test_a_second_run_changes_nothing(captured: StepGraph) -> None:
    transpose_linear_weights(captured, OPTIONS)
    before = listing(captured)
    report = transpose_linear_weights(captured, OPTIONS)
    assert (report.count, report.refusals) == (0, ())
    assert listing(captured) == before


@pytest.mark.parametrize("write", [plain, twice])
def test_equal_outputs(write: Write) -> None:
    graph = linear_graph(write)
    parameters, inputs = random_parameters(graph), random_inputs(graph)
    expected = run_graph(graph, parameters, inputs)
    transpose_linear_weights(graph, OPTIONS)
    torch.testing.assert_close(run_graph(graph, parameters, inputs), expected, **EXACT)


def test_equals_the_decoder(captured: StepGraph, eager_step: EagerStep) -> None:
    transpose_linear_weights(captured, OPTIONS)
    outputs = run_graph(captured, eager_step.parameters, eager_step.inputs)
    torch.testing.assert_close(outputs, eager_step.run(causal=True), **EXACT)

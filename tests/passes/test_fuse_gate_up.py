"""fuse_gate_up: one product makes both halves of the gated feed-forward."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import fx

from nemodiff_trt.bundle import WeightLayout
from nemodiff_trt.passes.fuse_gate_up import fuse_gate_up
from nemodiff_trt.passes.graph import StepGraph
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
GATE, UP, FUSED = (f"layers.0.mlp.{part}_proj.weight" for part in ("gate", "up", "gate_up"))
OPTIONS = pass_options()

Write = Callable[[GraphBuilder, fx.Node, fx.Node], fx.Node]


def gated(build: GraphBuilder, gate: fx.Node, up: fx.Node) -> fx.Node:
    return build.call(aten.mul.Tensor, build.call(aten.silu.default, gate), up)


def plain(build: GraphBuilder, x: fx.Node, other: fx.Node) -> fx.Node:
    return gated(build, build.linear(x, GATE, 5), build.linear(x, UP, 5))


def feed_forward(write: Write = plain) -> StepGraph:
    build = GraphBuilder()
    x, other = build.input("x", 2, 3, 4), build.input("other", 2, 3, 4)
    return build.finish(y=write(build, x, other))


def test_fires() -> None:
    graph = feed_forward()
    report = fuse_gate_up(graph, OPTIONS)
    graph.tidy()
    assert (report.count, report.refusals) == (1, ())
    assert operators(graph) == ["linear", "split_with_sizes", "getitem", "getitem", "silu", "mul"]
    assert graph.calls(aten.split_with_sizes.default)[0].args[1:] == ([5, 5], -1)
    assert graph.weights == {FUSED: WeightLayout((GATE, UP), False, "float64")}


def test_fires_on_every_layer(captured: StepGraph) -> None:
    before = operators(captured)
    assert fuse_gate_up(captured, OPTIONS).count == 2
    after = operators(captured)
    assert {name: after.count(name) - before.count(name) for name in ("linear", "split_with_sizes", "getitem")} == {
        "linear": -2,
        "split_with_sizes": 2,
        "getitem": 4,
    }


def reads_another_value(build: GraphBuilder, x: fx.Node, other: fx.Node) -> fx.Node:
    return gated(build, build.linear(x, GATE, 5), build.linear(other, UP, 5))


def has_a_bias(build: GraphBuilder, x: fx.Node, other: fx.Node) -> fx.Node:
    up = build.call(aten.linear.default, x, build.weight(UP, 5, 4), build.weight("bias", 5))
    return gated(build, build.linear(x, GATE, 5), up)


def is_no_linear(build: GraphBuilder, x: fx.Node, other: fx.Node) -> fx.Node:
    return gated(build, build.linear(x, GATE, 4), x)


def scales_by_a_number(build: GraphBuilder, x: fx.Node, other: fx.Node) -> fx.Node:
    return gated(build, build.linear(x, GATE, 5), 2.0)  # type: ignore[arg-type]


def shares_its_weight(build: GraphBuilder, x: fx.Node, other: fx.Node) -> fx.Node:
    return gated(build, build.linear(x, GATE, 5), build.linear(x, GATE, 5))


@pytest.mark.parametrize(
    ("write", "reason"),
    [
        (reads_another_value, "the layers read different inputs"),
        (has_a_bias, "a layer has a bias"),
        (is_no_linear, "not made of linear layers"),
        (scales_by_a_number, "not made of linear layers"),
        (shares_its_weight, "the layers do not have a weight each"),
    ],
)
def test_refuses(write: Write, reason: str) -> None:
    graph = feed_forward(write)
    before = listing(graph)
    report = fuse_gate_up(graph, OPTIONS)
    assert (report.count, [refusal.reason for refusal in report.refusals]) == (0, [reason])
    assert listing(graph) == before


def no_activation(build: GraphBuilder, x: fx.Node, other: fx.Node) -> fx.Node:
    return build.call(aten.mul.Tensor, build.linear(x, GATE, 5), build.linear(x, UP, 5))


def test_a_product_without_activation_is_no_candidate() -> None:
    graph = feed_forward(no_activation)
    before = listing(graph)
    report = fuse_gate_up(graph, OPTIONS)
    assert (report.count, report.refusals) == (0, ())
    assert listing(graph) == before


def test_a_second_run_changes_nothing(captured: StepGraph) -> None:
    fuse_gate_up(captured, OPTIONS)
    captured.tidy()
    before = listing(captured)
    report = fuse_gate_up(captured, OPTIONS)
    assert (report.count, [refusal.reason for refusal in report.refusals]) == (0, ["not made of linear layers"] * 2)
    assert listing(captured) == before


def reads_the_gate_twice(build: GraphBuilder, x: fx.Node, other: fx.Node) -> fx.Node:
    gate = build.linear(x, GATE, 5)
    return build.call(aten.add.Tensor, gated(build, gate, build.linear(x, UP, 5)), gate)


@pytest.mark.parametrize("write", [plain, reads_the_gate_twice])
def test_equal_outputs(write: Write) -> None:
    graph = feed_forward(write)
    parameters, inputs = random_parameters(graph), random_inputs(graph)
    expected = run_graph(graph, parameters, inputs)
    assert fuse_gate_up(graph, OPTIONS).count == 1
    graph.tidy()
    torch.testing.assert_close(run_graph(graph, parameters, inputs), expected, **EXACT)


def test_equals_the_decoder(captured: StepGraph, eager_step: EagerStep) -> None:
    fuse_gate_up(captured, OPTIONS)
    outputs = run_graph(captured, eager_step.parameters, eager_step.inputs)
    torch.testing.assert_close(outputs, eager_step.run(causal=True), **EXACT)

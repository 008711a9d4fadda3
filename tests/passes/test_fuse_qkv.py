"""fuse_qkv: one product makes queries, keys and values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import fx

from nemodiff_trt.bundle import WeightLayout
from nemodiff_trt.passes.fuse_qkv import fuse_qkv
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

aten, own = torch.ops.aten, torch.ops.nemodiff
MODULE = "layers.0.self_attn"
NAMES = {part: f"{MODULE}.{part}_proj.weight" for part in "qkv"}
FUSED = f"{MODULE}.qkv_proj.weight"
OPTIONS = pass_options()

Projections = Callable[[GraphBuilder, fx.Node, fx.Node], dict[str, fx.Node]]


def plain(build: GraphBuilder, x: fx.Node, other: fx.Node) -> dict[str, fx.Node]:
    return {part: build.linear(x, NAMES[part], 8 if part == "q" else 4) for part in "qkv"}


def qkv_graph(projections: Projections = plain) -> StepGraph:
    """Projections of x [2,3,6], 2 query heads and 1 key/value head of width 4, cache of 8."""
    build = GraphBuilder()
    x, other, cache = build.input("x", 2, 3, 6), build.input("other", 2, 3, 6), build.input("cache", 2, 1, 8, 4)
    length, positions = build.input("cache_length", 2, dtype=torch.int64), build.input("positions", 2, 3, dtype=torch.int64)
    cos, sin = build.weight("key_cos", 8, 2), build.weight("key_sin", 8, 2)
    made = projections(build, x, other)
    query = build.call(own.rotary.default, made["q"], cos, sin, positions, 2)
    key = build.call(own.rotary.default, made["k"], cos, sin, positions, 1)
    keys = build.call(own.cache_update.default, cache, key, length)
    values = build.call(own.cache_update.default, cache, made["v"], length)
    mixed = build.call(own.attention.default, query, keys, values, length, 2, True)
    extra = {"v": made["again"]} if "again" in made else {}
    return build.finish(mixed=mixed, keys=keys, values=values, **extra)


def test_fires_and_splits_in_the_order_of_the_parts() -> None:
    graph = qkv_graph()
    report = fuse_qkv(graph, OPTIONS)
    graph.tidy()
    assert (report.count, report.refusals) == (1, ())
    rest = ["rotary", "rotary", "cache_update", "cache_update", "attention"]
    assert operators(graph) == ["linear", "split_with_sizes", "getitem", "getitem", "getitem", *rest]
    assert graph.calls(aten.split_with_sizes.default)[0].args[1:] == ([8, 4, 4], -1)
    assert graph.weights[FUSED] == WeightLayout(tuple(NAMES.values()), False, "float64")
    assert set(graph.weights) == {FUSED, "key_cos", "key_sin"}


def test_fires_on_every_layer(captured: StepGraph) -> None:
    before = operators(captured)
    assert fuse_qkv(captured, OPTIONS).count == 2
    after = operators(captured)
    assert {name: after.count(name) - before.count(name) for name in ("linear", "split_with_sizes", "getitem")} == {
        "linear": -4,
        "split_with_sizes": 2,
        "getitem": 6,
    }


def reads_another_value(build: GraphBuilder, x: fx.Node, other: fx.Node) -> dict[str, fx.Node]:
    return plain(build, x, other) | {"k": build.linear(other, NAMES["k"], 4)}


def has_a_bias(build: GraphBuilder, x: fx.Node, other: fx.Node) -> dict[str, fx.Node]:
    weight, bias = build.weight(NAMES["v"], 4, 6), build.weight(f"{MODULE}.v_proj.bias", 4)
    return plain(build, x, other) | {"v": build.call(aten.linear.default, x, weight, bias)}


def is_no_linear(build: GraphBuilder, x: fx.Node, other: fx.Node) -> dict[str, fx.Node]:
    made = plain(build, x, other)
    return made | {"v": build.call(aten.silu.default, made["v"])}


def shares_a_weight(build: GraphBuilder, x: fx.Node, other: fx.Node) -> dict[str, fx.Node]:
    return plain(build, x, other) | {"v": build.linear(x, NAMES["k"], 4)}


def computes_a_weight(build: GraphBuilder, x: fx.Node, other: fx.Node) -> dict[str, fx.Node]:
    weight = build.call(aten.mul.Tensor, build.weight(NAMES["v"], 4, 6), 2.0)
    return plain(build, x, other) | {"v": build.call(aten.linear.default, x, weight)}


def stores_a_weight(**layout: Any) -> Projections:
    def projections(build: GraphBuilder, x: fx.Node, other: fx.Node) -> dict[str, fx.Node]:
        stored = WeightLayout((NAMES["v"],), **({"transposed": False, "dtype": "float64"} | layout))
        build.weight(NAMES["v"], 4, 6, layout=stored)
        return plain(build, x, other)

    return projections


@pytest.mark.parametrize(
    ("projections", "reason"),
    [
        (reads_another_value, "the layers read different inputs"),
        (has_a_bias, "a layer has a bias"),
        (is_no_linear, "not made of linear layers"),
        (shares_a_weight, "the layers do not have a weight each"),
        (computes_a_weight, "the layers do not have a weight each"),
        (stores_a_weight(transposed=True), "a weight is already stored in a form of its own"),
        (stores_a_weight(dtype="float16"), "the weights have different dtypes"),
    ],
)
def test_refuses(projections: Projections, reason: str) -> None:
    graph = qkv_graph(projections)
    graph.tidy()
    before = listing(graph)
    report = fuse_qkv(graph, OPTIONS)
    assert (report.count, [refusal.reason for refusal in report.refusals]) == (0, [reason])
    assert listing(graph) == before


def test_a_second_run_changes_nothing(captured: StepGraph) -> None:
    fuse_qkv(captured, OPTIONS)
    captured.tidy()
    before = listing(captured)
    report = fuse_qkv(captured, OPTIONS)
    assert (report.count, [refusal.reason for refusal in report.refusals]) == (0, ["not made of linear layers"] * 2)
    assert listing(captured) == before


def uses_v_again(build: GraphBuilder, x: fx.Node, other: fx.Node) -> dict[str, fx.Node]:
    made = plain(build, x, other)
    again = build.call(aten.linear.default, other, made["v"].args[1])
    return made | {"again": build.call(aten.add.Tensor, made["v"], again)}


@pytest.mark.parametrize("projections", [plain, uses_v_again])
def test_equal_outputs(projections: Projections) -> None:
    graph = qkv_graph(projections)
    parameters, inputs = random_parameters(graph), random_inputs(graph)
    expected = run_graph(graph, parameters, inputs)
    assert fuse_qkv(graph, OPTIONS).count == 1
    graph.tidy()
    torch.testing.assert_close(run_graph(graph, parameters, inputs), expected, **EXACT)


def test_equals_the_decoder(captured: StepGraph, eager_step: EagerStep) -> None:
    fuse_qkv(captured, OPTIONS)
    outputs = run_graph(captured, eager_step.parameters, eager_step.inputs)
    torch.testing.assert_close(outputs, eager_step.run(causal=True), **EXACT)

"""update_cache_in_place: keys and values are written into the cache inputs themselves."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import fx

from nemodiff_trt.contract import past_key, past_value, present_key, present_value
from nemodiff_trt.passes.graph import StepGraph
from nemodiff_trt.passes.update_cache_in_place import update_cache_in_place
from nemodiff_trt.plugins.cache_update import write_cache
from support.graphs import EXACT, GraphBuilder, listing, operators, pass_options, random_inputs, run_graph
from support.steps import EagerStep

nemodiff = torch.ops.nemodiff
OPTIONS = pass_options()

Write = Callable[[GraphBuilder, fx.Node, fx.Node, fx.Node], dict[str, fx.Node]]


def plain(build: GraphBuilder, past: fx.Node, new: fx.Node, length: fx.Node) -> dict[str, fx.Node]:
    return {"present": build.call(nemodiff.cache_update.default, past, new, length)}


def update(write: Write = plain) -> StepGraph:
    build = GraphBuilder()
    past, new = build.input("past", 2, 1, 8, 4), build.input("new", 2, 3, 4)
    return build.finish(**write(build, past, new, build.input("length", 2, dtype=torch.int64)))


def test_fires() -> None:
    graph = update()
    report = update_cache_in_place(graph, OPTIONS)
    assert (report.count, report.refusals) == (1, ())
    assert operators(graph) == ["write_cache"]


def test_fires_on_keys_and_values_of_every_layer(captured: StepGraph) -> None:
    assert update_cache_in_place(captured, OPTIONS).count == 4
    assert len(captured.calls(write_cache)) == 4


def reads_the_old_cache(build: GraphBuilder, past: fx.Node, new: fx.Node, length: fx.Node) -> dict[str, fx.Node]:
    return {**plain(build, past, new, length), "old": build.call(torch.ops.aten.neg.default, past)}


def updates_a_result(build: GraphBuilder, past: fx.Node, new: fx.Node, length: fx.Node) -> dict[str, fx.Node]:
    return plain(build, build.call(torch.ops.aten.neg.default, past), new, length)


@pytest.mark.parametrize(
    ("write", "reason"),
    [
        (reads_the_old_cache, "the cache as it was is also read by neg_default"),
        (updates_a_result, "its cache is not an input of the step"),
    ],
)
def test_refuses(write: Write, reason: str) -> None:
    graph = update(write)
    before = listing(graph)
    report = update_cache_in_place(graph, OPTIONS)
    assert (report.count, [refusal.reason for refusal in report.refusals]) == (0, [reason])
    assert listing(graph) == before


def test_a_second_run_changes_nothing(captured: StepGraph) -> None:
    update_cache_in_place(captured, OPTIONS)
    before = listing(captured)
    report = update_cache_in_place(captured, OPTIONS)
    assert (report.count, report.refusals) == (0, ())
    assert listing(captured) == before


def test_equal_outputs() -> None:
    graph = update()
    inputs = random_inputs(graph)
    expected = run_graph(graph, {}, inputs)
    update_cache_in_place(graph, OPTIONS)
    torch.testing.assert_close(run_graph(graph, {}, inputs), expected, **EXACT)


def test_the_result_is_the_input() -> None:
    graph = update()
    update_cache_in_place(graph, OPTIONS)
    inputs = random_inputs(graph)
    assert graph.run({}, inputs)["present"] is inputs["past"]


def test_equals_the_decoder(captured: StepGraph, eager_step: EagerStep) -> None:
    update_cache_in_place(captured, OPTIONS)
    torch.testing.assert_close(
        run_graph(captured, eager_step.parameters, eager_step.inputs), eager_step.run(causal=True), **EXACT
    )
    own = {name: value.clone() for name, value in eager_step.inputs.items()}
    outputs = captured.run(eager_step.parameters, own)
    for layer in range(2):
        assert outputs[present_key(layer)] is own[past_key(layer)]
        assert outputs[present_value(layer)] is own[past_value(layer)]

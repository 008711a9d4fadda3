"""decompose_plugins: no operator of the project is left, the meaning stays, and all layers share one mask."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from nemodiff_trt.passes.attach_decision_head import attach_decision_head
from nemodiff_trt.passes.decompose_plugins import decompose_plugins
from nemodiff_trt.passes.graph import StepGraph
from nemodiff_trt.passes.scale_queries import scale_queries
from nemodiff_trt.passes.select_last_position import select_last_position
from nemodiff_trt.passes.set_attention_direction import set_attention_direction
from nemodiff_trt.plugins.attention import attend_visible, visible_slots
from nemodiff_trt.vocabulary import Role
from support.graphs import (
    EXACT,
    GraphBuilder,
    attention_graph,
    directions,
    listing,
    operators,
    pass_options,
    random_inputs,
    random_parameters,
    run_graph,
)
from support.steps import EagerStep

OPTIONS = pass_options()


def left_over(graph: StepGraph) -> list[str]:
    return [node.name for node in graph.graph.nodes if getattr(node.target, "namespace", None) == "nemodiff"]


def test_fires() -> None:
    graph = attention_graph()
    report = decompose_plugins(graph, OPTIONS)
    graph.tidy()
    assert (report.count, report.refusals) == (1, ())
    assert operators(graph) == ["visible_slots", "attend_visible"]


def test_fires_on_every_operator(captured: StepGraph) -> None:
    select_last_position(captured, pass_options(Role.PREFILL))
    attach_decision_head(captured, OPTIONS)
    num_operators = len(left_over(captured))
    # Every operator of the table is in a prefill step.
    assert decompose_plugins(captured, OPTIONS).count == num_operators == 2 * 7 + 4
    assert left_over(captured) == []


def test_layers_share_a_mask(captured: StepGraph) -> None:
    decompose_plugins(captured, OPTIONS)
    (mask,) = captured.calls(visible_slots)
    assert [node.args[3] for node in captured.calls(attend_visible)] == [mask, mask]


def test_directions_do_not_share_a_mask(captured: StepGraph) -> None:
    captured.calls(torch.ops.nemodiff.attention.default)[1].update_arg(5, False)
    decompose_plugins(captured, OPTIONS)
    assert directions(captured) == [True, False]


@pytest.fixture
def _unknown_operator() -> Iterator[None]:
    library = torch.library.Library("nemodiff", "FRAGMENT")
    library.define("unknown_to_the_table(Tensor x) -> Tensor")
    library.impl("unknown_to_the_table", lambda x: x.neg(), "CompositeExplicitAutograd")
    yield
    library._destroy()


@pytest.mark.usefixtures("_unknown_operator")
def test_refuses_an_operator_without_reference() -> None:
    build = GraphBuilder()
    graph = build.finish(y=build.call(torch.ops.nemodiff.unknown_to_the_table.default, build.input("x", 2, 3)))
    before = listing(graph)
    report = decompose_plugins(graph, OPTIONS)
    assert report.count == 0
    assert [refusal.reason for refusal in report.refusals] == ["the operator has no reference in plugins.OPS"]
    assert listing(graph) == before


def test_refuses_arguments_by_keyword() -> None:
    graph = attention_graph()
    (node,) = graph.calls(torch.ops.nemodiff.attention.default)
    node.args, node.kwargs = node.args[:5], {"causal": True}
    before = listing(graph)
    report = decompose_plugins(graph, OPTIONS)
    assert (report.count, [refusal.reason for refusal in report.refusals]) == (0, ["arguments are given by keyword"])
    assert listing(graph) == before


def test_a_second_run_changes_nothing(captured: StepGraph) -> None:
    decompose_plugins(captured, OPTIONS)
    before = listing(captured)
    report = decompose_plugins(captured, OPTIONS)
    assert (report.count, report.refusals) == (0, ())
    assert listing(captured) == before


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("is_scaled", [False, True])
def test_equal_outputs(causal: bool, is_scaled: bool) -> None:
    graph = attention_graph(("w",), causal)
    if is_scaled:
        scale_queries(graph, OPTIONS)
    parameters, inputs = random_parameters(graph), random_inputs(graph)
    expected = run_graph(graph, parameters, inputs)
    decompose_plugins(graph, OPTIONS)
    torch.testing.assert_close(run_graph(graph, parameters, inputs), expected, **EXACT)


@pytest.mark.parametrize("role", [Role.VERIFY, Role.DENOISE])
def test_equals_the_decoder(captured: StepGraph, eager_step: EagerStep, role: Role) -> None:
    set_attention_direction(captured, pass_options(role))
    decompose_plugins(captured, OPTIONS)
    outputs = run_graph(captured, eager_step.parameters, eager_step.inputs)
    torch.testing.assert_close(outputs, eager_step.run(role.is_causal), **EXACT)

"""place_plugins: the operators that a build wants as plugins are marked for the lowering, and for nothing else."""

from __future__ import annotations

import pytest
import torch

from nemodiff_trt.passes.attach_decision_head import attach_decision_head
from nemodiff_trt.passes.decompose_plugins import decompose_plugins
from nemodiff_trt.passes.graph import NODE_FORM, StepGraph, operator_name
from nemodiff_trt.passes.place_plugins import place_plugins
from nemodiff_trt.plugins import Form
from nemodiff_trt.plugins.realisations import plugin_operators
from nemodiff_trt.vocabulary import Target
from support.graphs import EXACT, pass_options, run_graph
from support.steps import EagerStep

HEAD = pass_options(plugins=plugin_operators(Target.TENSORRT))


def placed(graph: StepGraph) -> dict[str, Form]:
    return {str(operator_name(node)): node.meta[NODE_FORM] for node in graph.graph.nodes if NODE_FORM in node.meta}


def decided(captured: StepGraph) -> StepGraph:
    attach_decision_head(captured, HEAD)
    return captured


def test_fires(captured: StepGraph) -> None:
    graph = decided(captured)
    report = place_plugins(graph, HEAD)
    assert (report.count, report.refusals) == (1, ())
    assert placed(graph) == {"decision_head": Form.PLUGIN}


def test_a_build_without_plugins_has_none(captured: StepGraph) -> None:
    graph = decided(captured)
    assert place_plugins(graph, pass_options()).count == 0
    assert placed(graph) == {}


def test_second_run_changes_nothing(captured: StepGraph) -> None:
    graph = decided(captured)
    place_plugins(graph, HEAD)
    assert place_plugins(graph, HEAD).count == 0


@pytest.mark.parametrize("names", [("decision_head",), ("decision_head", "attention")])
def test_equal_outputs(captured: StepGraph, eager_step: EagerStep, names: tuple[str, ...]) -> None:
    graph = decided(captured)
    before = run_graph(graph, eager_step.parameters, eager_step.inputs)
    place_plugins(graph, pass_options(plugins=frozenset(names)))
    torch.testing.assert_close(run_graph(graph, eager_step.parameters, eager_step.inputs), before, **EXACT)


def test_what_stays_an_operator_is_not_decomposed(captured: StepGraph, eager_step: EagerStep) -> None:
    graph = decided(captured)
    before = run_graph(graph, eager_step.parameters, eager_step.inputs)
    options = pass_options(plugins=plugin_operators(Target.INDUCTOR))
    decompose_plugins(graph, options)
    left = [operator_name(node) for node in graph.graph.nodes if operator_name(node) is not None]
    assert left == ["attention"] * options.model.num_hidden_layers + ["decision_head"]
    assert placed(graph) == {"attention": Form.TRITON, "decision_head": Form.TRITON}
    torch.testing.assert_close(run_graph(graph, eager_step.parameters, eager_step.inputs), before, **EXACT)

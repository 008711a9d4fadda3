"""expose_queries: the tensor that enters attention becomes an output, beyond those of the contract."""

from __future__ import annotations

import torch

from nemodiff_trt.passes.base import run_pipeline
from nemodiff_trt.passes.expose_queries import expose_queries
from nemodiff_trt.passes.graph import StepGraph
from nemodiff_trt.passes.pipelines import PIPELINES
from nemodiff_trt.passes.scale_queries import scale_queries
from nemodiff_trt.vocabulary import Role, Target
from support.graphs import EXACT, attention_graph, listing, pass_options, random_inputs, run_graph
from support.steps import EagerStep

_ATTENTION = torch.ops.nemodiff.attention.default


def test_fires_on_every_layer(captured: StepGraph) -> None:
    scale_queries(captured, pass_options())
    promised = captured.output_names
    report = expose_queries(captured, pass_options())
    assert (report.name, report.count, report.refusals) == ("expose_queries", 2, ())
    assert captured.scratch == ("scaled_query_0", "scaled_query_1")
    assert captured.output_names == (*promised, *captured.scratch)
    entering = [node.args[0] for node in captured.calls(_ATTENTION)]
    assert [captured.outputs[name] for name in captured.scratch] == entering


def test_refuses_a_query_that_is_scaled_later() -> None:
    graph = attention_graph()
    before = listing(graph)
    report = expose_queries(graph, pass_options())
    assert report.count == 0
    assert [refusal.reason for refusal in report.refusals] == [
        "its query is not scaled yet, so another tensor would enter the attention layer"
    ]
    assert listing(graph) == before


def test_a_second_run_changes_nothing() -> None:
    graph = attention_graph()
    scale_queries(graph, pass_options())
    expose_queries(graph, pass_options())
    before = listing(graph)
    report = expose_queries(graph, pass_options())
    assert report.count == 0
    assert [refusal.reason for refusal in report.refusals] == ["scaled_query_0 is an output already"]
    assert (listing(graph), graph.scratch) == (before, ("scaled_query_0",))


def test_equal_outputs_and_the_query_itself() -> None:
    graph = attention_graph()
    inputs = random_inputs(graph)
    plain = run_graph(attention_graph(), {}, inputs)
    scale_queries(graph, pass_options())
    expose_queries(graph, pass_options())
    outputs = run_graph(graph, {}, inputs)
    torch.testing.assert_close(outputs.pop("scaled_query_0"), inputs["query"] * 0.5, **EXACT)
    torch.testing.assert_close(outputs, plain, **EXACT)


def test_a_step_of_one_token_needs_no_boundary(captured: StepGraph, eager_step: EagerStep) -> None:
    decode, verify = captured.copy(), captured.copy()
    for role, graph in ((Role.DECODE, decode), (Role.VERIFY, verify)):
        run_pipeline(graph, PIPELINES[Target.TENSORRT_RTX][role], pass_options(role))
    assert decode.scratch == ()
    assert len(verify.scratch) == 2
    inputs, parameters = eager_step.inputs, eager_step.parameters
    outputs = run_graph(verify, parameters, inputs)
    promised = {name: value for name, value in outputs.items() if name not in verify.scratch}
    torch.testing.assert_close(promised, run_graph(decode, parameters, inputs), **EXACT)

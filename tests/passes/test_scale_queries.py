"""scale_queries: the scale moves from the scores to the query, for attention layers without a scale of their own."""

from __future__ import annotations

import torch

from nemodiff_trt.passes.graph import StepGraph
from nemodiff_trt.passes.scale_queries import scale_queries
from support.graphs import EXACT, attention_graph, listing, operators, pass_options, random_inputs, run_graph
from support.steps import EagerStep


def test_fires_on_every_attention() -> None:
    graph = attention_graph()
    report = scale_queries(graph, pass_options())
    assert (report.name, report.count, report.refusals) == ("scale_queries", 1, ())
    assert operators(graph) == ["mul", "attention"]
    # A head of 4: the query is halved, the scores are left alone.
    attention = graph.calls(torch.ops.nemodiff.attention.default)[0]
    assert attention.args[0].args[1] == 0.5
    assert attention.args[-1] == 1.0


def test_refuses_an_attention_with_a_scale() -> None:
    graph = attention_graph()
    scale_queries(graph, pass_options())
    before = listing(graph)
    report = scale_queries(graph, pass_options())
    assert report.count == 0
    assert [refusal.reason for refusal in report.refusals] == ["has the scale 1.0 already"]
    assert listing(graph) == before


def test_equal_outputs() -> None:
    plain, scaled = attention_graph(), attention_graph()
    scale_queries(scaled, pass_options())
    inputs = random_inputs(plain)
    torch.testing.assert_close(run_graph(scaled, {}, inputs), run_graph(plain, {}, inputs), **EXACT)


def test_equals_the_eager_decoder(captured: StepGraph, eager_step: EagerStep) -> None:
    assert scale_queries(captured, pass_options()).count == 2
    torch.testing.assert_close(
        run_graph(captured, eager_step.parameters, eager_step.inputs), eager_step.run(causal=True), **EXACT
    )

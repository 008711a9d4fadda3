"""attach_decision_head: an engine answers with tokens and probabilities, logits only where a build asks for them."""

from __future__ import annotations

import math

import pytest
import torch

from nemodiff_trt.contract import CONFIDENCE, LOGITS, TOKEN
from nemodiff_trt.passes.attach_decision_head import attach_decision_head
from nemodiff_trt.passes.graph import NODE_VALUE, StepGraph
from support.checkpoints import tiny_config
from support.graphs import GraphBuilder, listing, operators, pass_options, run_graph
from support.steps import EagerStep


def logits_graph(name: str = LOGITS, dtype: torch.dtype = torch.float32) -> StepGraph:
    """X [2,3,4] -> logits [2,3,V] and another output."""
    build = GraphBuilder(dtype)
    x = build.input("x", 2, 3, 4)
    logits = build.linear(x, "head.weight", tiny_config().vocab_size)
    return build.finish(**{name: logits, "other": build.call(torch.ops.aten.silu.default, x)})


def test_replaces_the_logits() -> None:
    graph = logits_graph()
    report = attach_decision_head(graph, pass_options())
    assert (report.count, report.refusals) == (1, ())
    assert operators(graph) == ["linear", "decision_head", "getitem", "getitem", "silu"]
    assert graph.output_names == (TOKEN, CONFIDENCE, "other")
    assert graph.calls(torch.ops.nemodiff.decision_head.default)[0].args[1] == tiny_config().mask_token_id
    values = {name: node.meta[NODE_VALUE] for name, node in graph.outputs.items()}
    assert (values[TOKEN].dtype, tuple(values[TOKEN].shape)) == (torch.int64, (2, 3))
    assert (values[CONFIDENCE].dtype, tuple(values[CONFIDENCE].shape)) == (torch.float32, (2, 3))


@pytest.mark.parametrize(("dtype", "cast"), [(torch.float32, []), (torch.float16, ["_to_copy"])])
def test_kept_logits_are_single_precision(dtype: torch.dtype, cast: list[str]) -> None:
    graph = logits_graph(dtype=dtype)
    attach_decision_head(graph, pass_options(keep_logits=True))
    assert operators(graph) == ["linear", "decision_head", "getitem", "getitem", *cast, "silu"]
    assert graph.output_names == (TOKEN, CONFIDENCE, LOGITS, "other")
    assert graph.outputs[LOGITS].meta[NODE_VALUE].dtype == torch.float32


def test_fires_once_on_the_captured_step(captured: StepGraph) -> None:
    others = captured.output_names[1:]
    assert attach_decision_head(captured, pass_options()).count == 1
    assert captured.output_names == (TOKEN, CONFIDENCE, *others)


def test_refuses_a_graph_without_logits() -> None:
    graph = logits_graph(name="scores")
    before = listing(graph)
    report = attach_decision_head(graph, pass_options())
    assert (report.count, report.refusals[0].node, report.refusals[0].reason) == (0, LOGITS, "no such output")
    assert listing(graph) == before


@pytest.mark.parametrize("keep_logits", [False, True])
def test_a_second_run_changes_nothing(captured: StepGraph, keep_logits: bool) -> None:
    options = pass_options(keep_logits=keep_logits)
    attach_decision_head(captured, options)
    before = listing(captured)
    report = attach_decision_head(captured, options)
    assert (report.count, report.refusals[0].reason) == (0, "the graph already decides")
    assert listing(captured) == before


def test_equals_argmax_and_softmax_of_the_decoder(captured: StepGraph, eager_step: EagerStep) -> None:
    attach_decision_head(captured, pass_options(keep_logits=True))
    outputs, expected = run_graph(captured, eager_step.parameters, eager_step.inputs), eager_step.run(causal=True)
    probability = expected[LOGITS].softmax(-1)
    without_mask = expected[LOGITS].clone()
    without_mask[..., tiny_config().mask_token_id] = -torch.inf
    token = without_mask.argmax(-1)
    confidence = probability.gather(-1, token[..., None])[..., 0].float()
    torch.testing.assert_close(outputs, {TOKEN: token, CONFIDENCE: confidence, **expected}, rtol=1e-6, atol=1e-10)


def test_never_decides_for_the_mask() -> None:
    graph = logits_graph()
    attach_decision_head(graph, pass_options())
    weight = torch.zeros(tiny_config().vocab_size, 4)
    weight[tiny_config().mask_token_id], weight[7] = 2.0, 1.0
    outputs = run_graph(graph, {"head.weight": weight}, {"x": torch.ones(2, 3, 4)})
    assert outputs[TOKEN].tolist() == [[7] * 3] * 2
    # The mask keeps its share of the probability.
    others = tiny_config().vocab_size - 2
    expected = math.exp(4) / (math.exp(4) + math.exp(8) + others)
    torch.testing.assert_close(outputs[CONFIDENCE], torch.full((2, 3), expected), rtol=1e-5, atol=0.0)

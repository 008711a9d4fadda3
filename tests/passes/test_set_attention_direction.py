"""set_attention_direction: the direction of the role, on every attention of the step."""

from __future__ import annotations

import pytest
import torch

from nemodiff_trt.contract import LOGITS
from nemodiff_trt.passes.graph import StepGraph
from nemodiff_trt.passes.set_attention_direction import set_attention_direction
from nemodiff_trt.vocabulary import Role
from support.graphs import EXACT, attention_graph, directions, listing, operators, pass_options, run_graph
from support.steps import EagerStep


@pytest.mark.parametrize("role", [Role.DENOISE, Role.DRAFT])
def test_fires_on_every_layer_and_changes_nothing_else(captured: StepGraph, role: Role) -> None:
    before = operators(captured)
    report = set_attention_direction(captured, pass_options(role))
    assert (report.name, report.count, report.refusals) == ("set_attention_direction", 2, ())
    assert directions(captured) == [False, False]
    assert operators(captured) == before


def test_turns_back(captured: StepGraph) -> None:
    before = listing(captured)
    set_attention_direction(captured, pass_options(Role.DENOISE))
    assert listing(captured) != before
    assert set_attention_direction(captured, pass_options(Role.VERIFY)).count == 2
    assert listing(captured) == before


def test_fires_only_where_the_direction_differs(captured: StepGraph) -> None:
    first = captured.calls(torch.ops.nemodiff.attention.default)[0]
    first.update_arg(5, False)
    report = set_attention_direction(captured, pass_options(Role.DRAFT))
    assert report.count == 1
    assert [(refusal.node, refusal.reason) for refusal in report.refusals] == [(first.name, "already has causal=False")]
    assert directions(captured) == [False, False]


@pytest.mark.parametrize(("role", "causal"), [(Role.VERIFY, True), (Role.PREFILL, True), (Role.DENOISE, False)])
def test_refuses_an_attention_that_has_the_direction(role: Role, causal: bool) -> None:
    graph = attention_graph(causal=causal)
    before = listing(graph)
    report = set_attention_direction(graph, pass_options(role))
    assert report.count == 0
    assert [refusal.reason for refusal in report.refusals] == [f"already has causal={causal}"]
    assert listing(graph) == before


def test_a_second_run_changes_nothing(captured: StepGraph) -> None:
    set_attention_direction(captured, pass_options(Role.DRAFT))
    before = listing(captured)
    assert set_attention_direction(captured, pass_options(Role.DRAFT)).count == 0
    assert listing(captured) == before


def test_equals_the_bidirectional_decoder(captured: StepGraph, eager_step: EagerStep) -> None:
    set_attention_direction(captured, pass_options(Role.DENOISE))
    outputs = run_graph(captured, eager_step.parameters, eager_step.inputs)
    torch.testing.assert_close(outputs, eager_step.run(causal=False), **EXACT)
    assert (outputs[LOGITS] - eager_step.run(causal=True)[LOGITS]).abs().max() > 0.1

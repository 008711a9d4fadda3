"""verify_contract: a graph that does not keep the step contract never becomes an engine."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from nemodiff_trt.contract import CACHE_LENGTH, LAST_INDEX, TOKEN, past_value, present_key
from nemodiff_trt.passes.attach_decision_head import attach_decision_head
from nemodiff_trt.passes.base import PassOptions
from nemodiff_trt.passes.graph import NODE_VALUE, StepGraph
from nemodiff_trt.passes.select_last_position import select_last_position
from nemodiff_trt.passes.verify_contract import verify_contract
from nemodiff_trt.vocabulary import Precision, Role
from support.graphs import listing, pass_options


def decided(graph: StepGraph, options: PassOptions) -> StepGraph:
    """The least that has to happen to a captured step to keep the contract."""
    if options.role is Role.PREFILL:
        select_last_position(graph, options)
    attach_decision_head(graph, options)
    return graph


@pytest.mark.parametrize("keep_logits", [False, True])
@pytest.mark.parametrize("role", [Role.PREFILL, Role.DECODE, Role.VERIFY, Role.DENOISE, Role.DRAFT])
def test_accepts_what_keeps_the_contract_and_changes_nothing(captured: StepGraph, role: Role, keep_logits: bool) -> None:
    options = pass_options(role, keep_logits=keep_logits)
    graph = decided(captured, options)
    before = listing(graph)
    for _ in range(2):
        report = verify_contract(graph, options)
        assert (report.count, report.refusals) == (1, ())
        assert listing(graph) == before


def drop_output(graph: StepGraph) -> None:
    graph.set_outputs({name: node for name, node in graph.outputs.items() if name != present_key(1)})


def reorder_outputs(graph: StepGraph) -> None:
    graph.set_outputs(dict(reversed(graph.outputs.items())))


def add_input(graph: StepGraph) -> None:
    graph.add_input(LAST_INDEX, CACHE_LENGTH, torch.empty(2, dtype=torch.int64, device="meta"))


def widen_cache(graph: StepGraph) -> None:
    node = graph.inputs[past_value(1)]
    node.meta[NODE_VALUE] = node.meta[NODE_VALUE].double()


def fix_batch(graph: StepGraph) -> None:
    node = graph.outputs[TOKEN]
    node.meta[NODE_VALUE] = torch.empty(2, node.meta[NODE_VALUE].shape[1], dtype=torch.int64, device="meta")


@pytest.mark.parametrize(
    ("damage", "tensor", "reason"),
    [
        (drop_output, present_key(1), "the contract has token, confidence, present_key_0"),
        (reorder_outputs, "order", "the graph has present_value_1, present_key_1"),
        (add_input, LAST_INDEX, "the graph has input_ids, cache_length, last_index"),
        (widen_cache, past_value(1), "is float64 ('B', 2, 'K', 16), the contract says float32 ('B', 2, 'K', 16)"),
        (fix_batch, TOKEN, "is int64 (2, 'S'), the contract says int64 ('B', 'S')"),
    ],
)
def test_refuses(captured: StepGraph, damage: Callable[[StepGraph], None], tensor: str, reason: str) -> None:
    graph = decided(captured, pass_options(Role.VERIFY))
    damage(graph)
    before = listing(graph)
    report = verify_contract(graph, pass_options(Role.VERIFY))
    assert report.count == 0
    assert [refusal.node for refusal in report.refusals] == [tensor]
    assert reason in report.refusals[0].reason
    assert listing(graph) == before


def test_refuses_logits_where_a_token_should_be(captured: StepGraph) -> None:
    report = verify_contract(captured, pass_options(Role.VERIFY))
    assert (report.count, report.refusals[0].node) == (0, TOKEN)


def test_refuses_a_prefill_that_answers_every_row(captured: StepGraph) -> None:
    graph = decided(captured, pass_options(Role.VERIFY))
    graph.add_input(LAST_INDEX, CACHE_LENGTH, graph.inputs[CACHE_LENGTH].meta[NODE_VALUE])
    report = verify_contract(graph, pass_options(Role.PREFILL))
    assert report.refusals[0].reason == "is int64 ('B', 'S'), the contract says int64 ('B', 1)"


def test_refuses_another_precision(captured: StepGraph) -> None:
    graph = decided(captured, pass_options(Role.VERIFY))
    report = verify_contract(graph, pass_options(Role.VERIFY, precision=Precision.FP16))
    caches = [name for name in (*graph.inputs, *graph.outputs) if name.startswith(("past", "present"))]
    assert (report.count, [refusal.node for refusal in report.refusals]) == (0, caches)

"""expand_quadratic: which tokens see each other and where they stand become inputs; nothing else of the step changes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from nemodiff_trt.contract import ADAPTER_ROWS, INPUT_IDS, POSITION_OFFSET, STEP_MASK
from nemodiff_trt.passes.expand_quadratic import expand_quadratic
from nemodiff_trt.passes.graph import StepGraph
from nemodiff_trt.passes.set_attention_direction import set_attention_direction
from nemodiff_trt.vocabulary import Role
from support.graphs import EXACT, attention_graph, listing, operators, pass_options, run_graph
from support.steps import EagerStep

OPTIONS = pass_options(Role.QUADRATIC)


def with_layout(step: EagerStep, offsets: Tensor, mask: Tensor) -> EagerStep:
    """`step` in which every row has these offsets [S] and this mask [S,S]."""
    batch = step.inputs[INPUT_IDS].shape[0]
    layout = {POSITION_OFFSET: offsets.repeat(batch, 1), STEP_MASK: mask.repeat(batch, 1, 1)}
    return EagerStep(step.decoder, step.inputs | layout)


def test_fires_on_every_attention_and_the_positions(captured: StepGraph) -> None:
    before = operators(captured)
    report = expand_quadratic(captured, OPTIONS)
    captured.tidy()
    assert (report.count, report.refusals) == (3, ())
    after = operators(captured)
    assert [after.count(name) for name in ("attention", "masked_attention", "step_positions")] == [0, 2, 0]
    assert len(after) == len(before) + 1
    assert list(captured.inputs)[2:5] == [POSITION_OFFSET, STEP_MASK, ADAPTER_ROWS]


def test_refuses_a_role_with_an_order_of_its_own(captured: StepGraph) -> None:
    before = listing(captured)
    report = expand_quadratic(captured, pass_options(Role.DRAFT))
    assert (report.count, [refusal.reason for refusal in report.refusals]) == (0, ["the role has a fixed order of tokens"])
    assert listing(captured) == before


def test_refuses_a_graph_without_token_ids() -> None:
    graph = attention_graph()
    report = expand_quadratic(graph, OPTIONS)
    assert (report.count, [refusal.node for refusal in report.refusals]) == (0, [INPUT_IDS])


def test_a_second_run_changes_nothing(captured: StepGraph) -> None:
    expand_quadratic(captured, OPTIONS)
    captured.tidy()
    before = listing(captured)
    report = expand_quadratic(captured, OPTIONS)
    assert (report.count, [refusal.reason for refusal in report.refusals]) == (0, ["the graph already takes a layout"])
    assert listing(captured) == before


@pytest.mark.parametrize("causal", [True, False])
def test_contains_the_other_roles(captured: StepGraph, eager_step: EagerStep, causal: bool) -> None:
    num_tokens = eager_step.inputs[INPUT_IDS].shape[1]
    mask = torch.ones(num_tokens, num_tokens, dtype=torch.bool)
    step = with_layout(eager_step, torch.arange(num_tokens), mask.tril() if causal else mask)
    plain = captured.copy()
    if not causal:
        set_attention_direction(plain, pass_options(Role.DENOISE))
    expand_quadratic(captured, OPTIONS)
    found = run_graph(captured, step.parameters, step.inputs)
    torch.testing.assert_close(found, run_graph(plain, step.parameters, step.inputs), **EXACT)
    torch.testing.assert_close(found, step.run(causal), **EXACT)


def test_the_order_of_tokens_in_a_step_has_no_meaning(captured: StepGraph, eager_step: EagerStep) -> None:
    """A causal step written backwards: positions and mask say what comes before what."""
    num_tokens = eager_step.inputs[INPUT_IDS].shape[1]
    backwards = with_layout(eager_step, torch.arange(num_tokens).flip(0), torch.ones(num_tokens, num_tokens).triu().bool())
    backwards.inputs[INPUT_IDS] = eager_step.inputs[INPUT_IDS].flip(1)
    expand_quadratic(captured, OPTIONS)
    found = run_graph(captured, backwards.parameters, backwards.inputs)["logits"]
    torch.testing.assert_close(found.flip(1), eager_step.run(causal=True)["logits"], **EXACT)

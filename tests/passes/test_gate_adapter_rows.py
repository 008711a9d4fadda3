"""gate_adapter_rows: an input names the tokens that the draft adapter applies to."""

from __future__ import annotations

import pytest
import torch

from nemodiff_trt.contract import ADAPTER_ROWS, LOGITS
from nemodiff_trt.options import AdapterForm
from nemodiff_trt.passes.apply_draft_adapter import apply_draft_adapter
from nemodiff_trt.passes.expand_quadratic import expand_quadratic
from nemodiff_trt.passes.gate_adapter_rows import gate_adapter_rows
from nemodiff_trt.passes.graph import StepGraph
from nemodiff_trt.vocabulary import Role
from support.graphs import ADAPTER, EXACT, listing, operators, pass_options, run_graph
from support.steps import EagerStep

OPTIONS = pass_options(Role.QUADRATIC)


@pytest.fixture
def expanded(captured: StepGraph) -> StepGraph:
    apply_draft_adapter(captured, OPTIONS)
    expand_quadratic(captured, OPTIONS)
    captured.tidy()
    return captured


def test_fires_on_every_branch_and_makes_one_gate(expanded: StepGraph) -> None:
    before = operators(expanded)
    report = gate_adapter_rows(expanded, OPTIONS)
    expanded.tidy()
    assert (report.count, report.refusals) == (2, ())
    grown = {name: operators(expanded).count(name) - before.count(name) for name in set(before)}
    # The multiplication by the scale moved; one more makes the gate of all layers.
    assert {name: count for name, count in grown.items() if count} == {"unsqueeze": 1, "mul": 1}
    scales = [node.args[1] for node in expanded.calls(torch.ops.aten.mul.Tensor) if isinstance(node.args[1], float)]
    assert scales == [ADAPTER.scale]


def test_refuses_without_the_input(captured: StepGraph) -> None:
    apply_draft_adapter(captured, pass_options(Role.DRAFT))
    before = listing(captured)
    report = gate_adapter_rows(captured, pass_options(Role.DRAFT))
    assert (report.count, [refusal.reason for refusal in report.refusals]) == (0, ["no such input"])
    assert listing(captured) == before


def test_refuses_a_branch_without_a_scale(expanded: StepGraph) -> None:
    up = next(node for node in expanded.calls(torch.ops.aten.linear.default) if str(node.args[1]).endswith("lora_b_weight"))
    scaled = next(iter(up.users))
    scaled.replace_all_uses_with(up)
    expanded.tidy()
    report = gate_adapter_rows(expanded, OPTIONS)
    reasons = [refusal.reason for refusal in report.refusals]
    assert (report.count, reasons) == (1, ["its result is not multiplied by the adapter's scale"])


def test_a_second_run_changes_nothing(expanded: StepGraph) -> None:
    gate_adapter_rows(expanded, OPTIONS)
    expanded.tidy()
    before = listing(expanded)
    report = gate_adapter_rows(expanded, OPTIONS)
    assert (report.count, [refusal.reason for refusal in report.refusals]) == (0, ["already has its gate"] * 2)
    assert listing(expanded) == before


@pytest.mark.parametrize("share", [None, 0.0, 1.0])
def test_equals_the_decoder(expanded: StepGraph, eager_step: EagerStep, share: float | None) -> None:
    drawn = eager_step.inputs[ADAPTER_ROWS]
    named = drawn if share is None else torch.full_like(drawn, share)
    step = EagerStep(eager_step.decoder, eager_step.inputs | {ADAPTER_ROWS: named})
    gate_adapter_rows(expanded, OPTIONS)
    found = run_graph(expanded, step.parameters, step.inputs)
    torch.testing.assert_close(found, step.run(False, use_adapter=True, with_layout=True), **EXACT)
    if share == 0.0:
        # To the last bit: a token without adapter is verified by the base weights.
        assert torch.equal(found[LOGITS], step.run(False, use_adapter=False, with_layout=True)[LOGITS])


def test_a_merged_adapter_becomes_a_branch_here(captured: StepGraph) -> None:
    options = pass_options(Role.QUADRATIC, adapter_form=AdapterForm.MERGED)
    assert apply_draft_adapter(captured, options).count == 2
    assert any("lora_A" in name for name in captured.weights)

"""apply_draft_adapter: the output projections of a draft step are those of the adapter, as a branch or as a second matrix."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from nemodiff_trt.bundle import Combine, WeightLayout
from nemodiff_trt.contract import LOGITS
from nemodiff_trt.options import AdapterForm
from nemodiff_trt.passes.apply_draft_adapter import apply_draft_adapter
from nemodiff_trt.passes.graph import NODE_VALUE, StepGraph
from nemodiff_trt.passes.set_attention_direction import set_attention_direction
from nemodiff_trt.vocabulary import Role
from support.graphs import (
    ADAPTER,
    EXACT,
    attention_graph,
    listing,
    operators,
    pass_options,
    random_inputs,
    random_parameters,
    run_graph,
)
from support.steps import EagerStep

MODULE = "layers.0.self_attn"
BASE, DOWN, UP = f"{MODULE}.o_proj.weight", f"{MODULE}.adapter.lora_A.weight", f"{MODULE}.adapter.lora_B.weight"
MERGED = f"{MODULE}.o_proj_draft.weight"
FORMS = [AdapterForm.LOW_RANK, AdapterForm.MERGED]


def apply(graph: StepGraph, **changes: Any) -> Any:
    return apply_draft_adapter(graph, pass_options(**({"role": Role.DRAFT} | changes)))


def test_low_rank_adds_a_branch_beside_the_base() -> None:
    graph = attention_graph(out_names=(BASE,))
    report = apply(graph)
    assert (report.count, report.refusals) == (1, ())
    assert operators(graph) == ["attention", "linear", "linear", "linear", "mul", "add"]
    assert graph.weights == {name: WeightLayout((name,), False, "float64") for name in (BASE, DOWN, UP)}
    shapes = {node.target: tuple(node.meta[NODE_VALUE].shape) for node in graph.weight_nodes()}
    assert shapes == {BASE: (6, 8), DOWN: (ADAPTER.rank, 8), UP: (6, ADAPTER.rank)}
    assert graph.calls(torch.ops.aten.mul.Tensor)[0].args[1] == ADAPTER.scale


def test_merged_reads_a_second_matrix_in_place_of_the_base() -> None:
    graph = attention_graph(out_names=(BASE,))
    report = apply(graph, adapter_form=AdapterForm.MERGED)
    graph.tidy()
    assert (report.count, report.refusals) == (1, ())
    assert operators(graph) == ["attention", "linear"]
    assert graph.weights == {MERGED: WeightLayout((BASE, DOWN, UP), False, "float64", Combine.MERGE_ADAPTER)}


@pytest.mark.parametrize("form", FORMS)
def test_fires_on_every_layer(captured: StepGraph, form: AdapterForm) -> None:
    before = operators(captured)
    assert apply(captured, adapter_form=form).count == 2
    branch = {"linear": 2, "mul": 1, "add": 1} if form is AdapterForm.LOW_RANK else {}
    grown = {name: operators(captured).count(name) - before.count(name) for name in set(before)}
    assert {name: count for name, count in grown.items() if count} == {name: 2 * count for name, count in branch.items()}


@pytest.mark.parametrize(
    ("out_name", "changes", "reason"),
    [
        (BASE, {"role": Role.VERIFY}, "role verify runs the base weights"),
        (BASE, {"role": Role.DENOISE}, "role denoise runs the base weights"),
        (BASE, {"adapter": None}, "no adapter to apply"),
        (BASE, {"adapter_form": AdapterForm.NONE}, "no adapter to apply"),
        (f"{MODULE}.dense.weight", {}, "not a plain output projection"),
    ],
)
def test_refuses(out_name: str, changes: dict[str, Any], reason: str) -> None:
    graph = attention_graph(out_names=(out_name,))
    before = listing(graph)
    report = apply(graph, **changes)
    assert report.count == 0
    assert [refusal.reason for refusal in report.refusals] == [reason]
    assert listing(graph) == before


def test_refuses_a_matrix_that_is_not_stored() -> None:
    graph = attention_graph(out_names=(BASE,))
    linear = graph.calls(torch.ops.aten.linear.default)[0]
    linear.update_arg(1, graph.call(linear, torch.ops.aten.mul.Tensor, linear.args[1], 2.0))
    report = apply(graph)
    assert (report.count, [refusal.reason for refusal in report.refusals]) == (0, ["not a plain output projection"])


def test_leaves_linears_that_do_not_follow_attention_alone(captured: StepGraph) -> None:
    others = [node.args for node in captured.calls(torch.ops.aten.linear.default) if "o_proj" not in str(node.args[1])]
    apply(captured, adapter_form=AdapterForm.MERGED)
    after = [node.args for node in captured.calls(torch.ops.aten.linear.default) if "o_proj" not in str(node.args[1])]
    assert after == others


@pytest.mark.parametrize(
    ("form", "again", "reason"),
    [
        (AdapterForm.LOW_RANK, AdapterForm.LOW_RANK, "already has its low-rank branch"),
        (AdapterForm.LOW_RANK, AdapterForm.MERGED, "already has its low-rank branch"),
        (AdapterForm.MERGED, AdapterForm.MERGED, "already merged"),
        (AdapterForm.MERGED, AdapterForm.LOW_RANK, "already merged"),
    ],
)
def test_a_second_run_changes_nothing(captured: StepGraph, form: AdapterForm, again: AdapterForm, reason: str) -> None:
    apply(captured, adapter_form=form)
    captured.tidy()
    before = listing(captured)
    report = apply(captured, adapter_form=again)
    reasons = [refusal.reason for refusal in report.refusals if refusal.reason.startswith("already")]
    assert (report.count, reasons) == (0, [reason, reason])
    assert listing(captured) == before


@pytest.mark.parametrize("form", FORMS)
def test_every_user_of_the_projection_sees_the_adapter(form: AdapterForm) -> None:
    graph = attention_graph(out_names=(BASE,), residual=True)
    parameters = random_parameters(graph, **{DOWN: (ADAPTER.rank, 8), UP: (6, ADAPTER.rank)})
    inputs = random_inputs(graph)
    base = run_graph(graph, parameters, inputs)
    apply(graph, adapter_form=form)
    outputs = run_graph(graph, parameters, inputs)
    # attention(...) @ W + scale * attention(...) @ A B, once as an output and once doubled.
    mixed = run_graph(attention_graph(out_names=()), parameters, inputs)["mixed"]
    expected = base["out_0"] + ADAPTER.scale * mixed @ parameters[DOWN].t() @ parameters[UP].t()
    torch.testing.assert_close(outputs["out_0"], expected, **EXACT)
    torch.testing.assert_close(outputs["doubled"], 2 * expected, **EXACT)


@pytest.mark.parametrize("form", FORMS)
def test_equals_the_decoder_with_adapter(captured: StepGraph, eager_step: EagerStep, form: AdapterForm) -> None:
    set_attention_direction(captured, pass_options(Role.DRAFT))
    apply(captured, adapter_form=form)
    outputs = run_graph(captured, eager_step.parameters, eager_step.inputs)
    torch.testing.assert_close(outputs, eager_step.run(causal=False, use_adapter=True), **EXACT)
    assert (outputs[LOGITS] - eager_step.run(causal=False)[LOGITS]).abs().max() > 0.1

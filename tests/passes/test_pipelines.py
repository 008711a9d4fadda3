"""Whole pipelines: every role keeps the meaning of the eager decoder, and all roles share one set of stored tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from nemodiff_trt.bundle import Combine, WeightLayout
from nemodiff_trt.contract import CONFIDENCE, LAST_INDEX, LOGITS, STEP_MASK, TOKEN
from nemodiff_trt.errors import PassError
from nemodiff_trt.options import AdapterForm
from nemodiff_trt.passes.base import PassReport, run_pipeline
from nemodiff_trt.passes.graph import StepGraph
from nemodiff_trt.passes.pipelines import PIPELINES
from nemodiff_trt.plugins.decision_head import decision_head_reference
from nemodiff_trt.vocabulary import BUILT_MODES, Role, Target, roles_for
from support.checkpoints import tiny_config
from support.graphs import EXACT, directions, pass_options, run_graph
from support.steps import TABLES, EagerStep

ROLES = list(PIPELINES[Target.ONNXRUNTIME])
VARIANTS = [(role, AdapterForm.LOW_RANK) for role in ROLES] + [
    (Role.DRAFT, AdapterForm.MERGED),
    (Role.DRAFT, AdapterForm.NONE),
    (Role.QUADRATIC, AdapterForm.MERGED),
    (Role.QUADRATIC, AdapterForm.NONE),
]


def make_role(graph: StepGraph, role: Role, target: Target = Target.ONNXRUNTIME, **changes: Any) -> tuple[PassReport, ...]:
    return run_pipeline(graph, PIPELINES[target][role], pass_options(role, **changes))


def eager_answer(step: EagerStep, role: Role, adapted: bool) -> dict[str, Tensor]:
    """What the contract promises for `role`, from the eager decoder."""
    outputs = step.run(role.is_causal, adapted, role.takes_layout)
    logits = outputs.pop(LOGITS)
    if role is Role.PREFILL:
        logits = logits[torch.arange(logits.shape[0]), step.inputs[LAST_INDEX]][:, None]
    token, confidence = decision_head_reference(logits, tiny_config().mask_token_id)
    return {TOKEN: token, CONFIDENCE: confidence, LOGITS: logits, **outputs}


def test_every_mode_finds_its_roles() -> None:
    assert set(roles_for(BUILT_MODES)) == set(ROLES)


@pytest.mark.parametrize("target", [Target.ONNXRUNTIME, Target.TENSORRT_RTX, Target.INDUCTOR])
@pytest.mark.parametrize(("role", "form"), VARIANTS)
def test_equals_the_eager_decoder(
    captured: StepGraph, eager_step: EagerStep, role: Role, form: AdapterForm, target: Target
) -> None:
    make_role(captured, role, target, keep_logits=True, adapter_form=form)
    outputs = run_graph(captured, eager_step.parameters, eager_step.inputs)
    promised = {name: value for name, value in outputs.items() if name not in captured.scratch}
    adapted = role.uses_adapter and form is not AdapterForm.NONE
    torch.testing.assert_close(promised, eager_answer(eager_step, role, adapted), **EXACT)


@pytest.mark.parametrize("role", ROLES)
def test_logits_are_returned_on_request_only(captured: StepGraph, eager_step: EagerStep, role: Role) -> None:
    make_role(captured, role)
    outputs = run_graph(captured, eager_step.parameters, eager_step.inputs)
    expected = eager_answer(eager_step, role, adapted=role.uses_adapter)
    del expected[LOGITS]
    torch.testing.assert_close(outputs, expected, **EXACT)


@pytest.mark.parametrize("target", list(PIPELINES))
@pytest.mark.parametrize(("role", "form"), VARIANTS)
def test_direction_survives_every_pass(captured: StepGraph, role: Role, form: AdapterForm, target: Target) -> None:
    make_role(captured, role, target, adapter_form=form)
    num_layers = 0 if role.takes_layout else tiny_config().num_hidden_layers
    assert directions(captured) == [role in (Role.PREFILL, Role.DECODE, Role.VERIFY)] * num_layers


def test_a_block_sees_its_future_only_in_bidirectional_roles(captured: StepGraph, eager_step: EagerStep) -> None:
    # Where the step says so, it is causal here.
    causal = torch.ones_like(eager_step.inputs[STEP_MASK]).tril()
    eager_step = EagerStep(eager_step.decoder, {**eager_step.inputs, STEP_MASK: causal})
    changed = EagerStep(eager_step.decoder, dict(eager_step.inputs))
    changed.inputs["input_ids"] = eager_step.inputs["input_ids"].clone()
    changed.inputs["input_ids"][:, -1] += 1
    moved = {}
    for role in ROLES:
        graph = captured.copy()
        make_role(graph, role, keep_logits=True)
        first, second = (run_graph(graph, step.parameters, step.inputs)[LOGITS] for step in (eager_step, changed))
        # The first row of the block, which is also the row that a prefill selects of the first sequence.
        moved[role] = bool((first[0, 0] - second[0, 0]).abs().max() > 1e-6)
    assert moved == {role: role in (Role.DENOISE, Role.DRAFT) for role in ROLES}


def no_value_projection(graph: StepGraph) -> None:
    linears = {str(node.args[1].target): node for node in graph.calls(torch.ops.aten.linear.default)}
    linear = linears["encoder.layers.1.self_attn.v_proj.weight"]
    silu = graph.call(linear.next, torch.ops.aten.silu.default, linear)
    linear.replace_all_uses_with(silu, delete_user_cb=lambda user: user is not silu)


def no_activation(graph: StepGraph) -> None:
    silu = graph.calls(torch.ops.aten.silu.default)[0]
    silu.target = torch.ops.aten.relu.default


def no_final_norm(graph: StepGraph) -> None:
    head = graph.outputs[LOGITS]
    head.update_arg(0, head.args[0].args[0])


def bidirectional_already(graph: StepGraph) -> None:
    graph.calls(torch.ops.nemodiff.attention.default)[1].update_arg(5, False)


@pytest.mark.parametrize(
    ("role", "damage", "message"),
    [
        (Role.DECODE, no_value_projection, r"fuse_qkv fired 1 times for role decode, expected 2 \(attention_1: not made of"),
        (Role.VERIFY, no_activation, "fuse_gate_up fired 1 times for role verify, expected 2"),
        (Role.PREFILL, no_final_norm, r"select_last_position fired 0 times .* \(logits: not a linear layer behind a norm"),
        (Role.DRAFT, bidirectional_already, r"set_attention_direction fired 1 times .* already has causal=False"),
    ],
)
def test_a_pass_that_stops_matching_is_an_error(
    captured: StepGraph, role: Role, damage: Callable[[StepGraph], None], message: str
) -> None:
    damage(captured)
    with pytest.raises(PassError, match=message):
        make_role(captured, role)


def test_a_checkpoint_without_adapter_drafts_with_the_base(captured: StepGraph, eager_step: EagerStep) -> None:
    make_role(captured, Role.DRAFT, adapter=None, keep_logits=True)
    outputs = run_graph(captured, eager_step.parameters, eager_step.inputs)
    torch.testing.assert_close(outputs, eager_answer(eager_step, Role.DRAFT, adapted=False), **EXACT)


def stored(captured: StepGraph, role: Role, form: AdapterForm = AdapterForm.LOW_RANK) -> dict[str, WeightLayout]:
    graph = captured.copy()
    make_role(graph, role, adapter_form=form)
    return graph.weights


def test_all_roles_share_the_same_stored_tensors(captured: StepGraph) -> None:
    shared = stored(captured, Role.VERIFY)
    assert all(stored(captured, role) == shared for role in ROLES if not role.uses_adapter)
    for role in (Role.DRAFT, Role.QUADRATIC):
        assert stored(captured, role, AdapterForm.NONE) == shared


def test_a_draft_adds_only_the_adapter(captured: StepGraph) -> None:
    shared, draft = stored(captured, Role.VERIFY), stored(captured, Role.DRAFT)
    assert {name: draft[name] for name in shared} == shared
    added = {f"encoder.layers.{layer}.self_attn.adapter.lora_{part}.weight" for layer in range(2) for part in "AB"}
    assert set(draft) - set(shared) == added
    assert stored(captured, Role.QUADRATIC) == stored(captured, Role.QUADRATIC, AdapterForm.MERGED) == draft


def test_a_merged_draft_replaces_only_the_output_projections(captured: StepGraph) -> None:
    shared, draft = stored(captured, Role.VERIFY), stored(captured, Role.DRAFT, AdapterForm.MERGED)
    assert set(shared) - set(draft) == {f"encoder.layers.{layer}.self_attn.o_proj.weight" for layer in range(2)}
    merged = {name: layout for name, layout in draft.items() if name not in shared}
    assert {layout.combine for layout in merged.values()} == {Combine.MERGE_ADAPTER}
    assert len(merged) == 2
    assert all(layout.transposed for layout in merged.values())


def test_every_parameter_is_stored_exactly_once(captured: StepGraph, eager_step: EagerStep) -> None:
    layouts = stored(captured, Role.DRAFT)
    sources = [source for layout in layouts.values() for source in layout.sources]
    assert sorted(sources) == sorted(eager_step.decoder.state_dict())
    assert {name for name, layout in layouts.items() if layout.combine is Combine.ROTARY_TABLE} == set(TABLES)

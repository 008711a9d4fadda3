"""Which passes make a role for a target, in which order, and how often each has to fire."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass

import torch

import nemodiff_trt.plugins  # noqa: F401  registers torch.ops.nemodiff
from nemodiff_trt.config import ModelConfig
from nemodiff_trt.contract import ENGINE_FLOAT, step_contract
from nemodiff_trt.options import AdapterForm
from nemodiff_trt.passes.apply_draft_adapter import ApplyDraftAdapter
from nemodiff_trt.passes.attach_decision_head import AttachDecisionHead
from nemodiff_trt.passes.base import PlannedPass
from nemodiff_trt.passes.externalize_weights import ExternalizeWeights
from nemodiff_trt.passes.fuse_gate_up import FuseGateUp
from nemodiff_trt.passes.fuse_qkv import FuseQKV
from nemodiff_trt.passes.select_last_position import SelectLastPosition
from nemodiff_trt.passes.set_attention_direction import SetAttentionDirection
from nemodiff_trt.passes.verify_contract import VerifyContract
from nemodiff_trt.vocabulary import Precision, Role, Target

aten, own = torch.ops.aten, torch.ops.nemodiff

ONNX_OPERATORS: frozenset[object] = frozenset(
    {
        aten.embedding.default,
        aten.linear.default,
        aten.silu.default,
        aten.mul.Tensor,
        aten.add.Tensor,
        aten.slice.Tensor,
        operator.getitem,
        own.rms_norm.default,
        own.step_positions.default,
        own.rotary.default,
        own.cache_update.default,
        own.attention.default,
        own.select_position.default,
        own.decision_head.default,
    }
)


@dataclass(frozen=True, slots=True)
class RolePlan:
    """Everything a pipeline depends on. `adapter_scale` is None when drafting uses the base weights."""

    role: Role
    model: ModelConfig
    precision: Precision
    adapter_form: AdapterForm
    adapter_scale: float | None
    keep_logits: bool

    @property
    def applies_adapter(self) -> bool:
        return self.role.uses_adapter and self.adapter_scale is not None and self.adapter_form is not AdapterForm.NONE


def onnxruntime_pipeline(plan: RolePlan) -> tuple[PlannedPass, ...]:
    """Passes for ONNX Runtime."""
    layers = plan.model.num_hidden_layers
    adapter = plan.applies_adapter
    is_prefill = plan.role is Role.PREFILL
    # Per layer: two norms, four linears after both fusions (qkv, o, gate-up, down) and, unmerged, A and B of the adapter;
    # outside: embedding, final norm, head and four rotary tables.
    num_weights = 6 * layers + 7 + (2 * layers if adapter and plan.adapter_form is AdapterForm.LOW_RANK else 0)
    contract = step_contract(plan.role, plan.model, plan.precision, plan.keep_logits)
    steps = (
        PlannedPass(SetAttentionDirection(plan.role.is_causal), 0 if plan.role.is_causal else layers),
        # Before any fusion: it looks for o_proj by its name in the checkpoint.
        *((PlannedPass(ApplyDraftAdapter(plan.adapter_form, plan.adapter_scale or 0.0), layers),) if adapter else ()),
        PlannedPass(FuseQKV(), layers),
        PlannedPass(FuseGateUp(), layers),
        # Before the decision head: it follows the logits back to the final norm.
        *((PlannedPass(SelectLastPosition(), 1),) if is_prefill else ()),
        PlannedPass(AttachDecisionHead(plan.model.mask_token_id, plan.keep_logits), 1),
        # After every pass that makes or replaces weights.
        PlannedPass(ExternalizeWeights(ENGINE_FLOAT[plan.precision], transpose_linears=True), num_weights),
        PlannedPass(VerifyContract(contract, ONNX_OPERATORS), 0),
    )
    return steps


PIPELINES: dict[Target, Callable[[RolePlan], tuple[PlannedPass, ...]]] = {Target.ONNXRUNTIME: onnxruntime_pipeline}

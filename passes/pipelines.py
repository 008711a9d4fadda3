"""The pipelines: which passes make which role for which target, in which order, firing how often."""

from __future__ import annotations

from nemodiff_trt.options import AdapterForm
from nemodiff_trt.passes.apply_draft_adapter import apply_draft_adapter
from nemodiff_trt.passes.attach_decision_head import attach_decision_head
from nemodiff_trt.passes.base import PassOptions, Stage
from nemodiff_trt.passes.fuse_gate_up import fuse_gate_up
from nemodiff_trt.passes.fuse_qkv import fuse_qkv
from nemodiff_trt.passes.select_last_position import select_last_position
from nemodiff_trt.passes.set_attention_direction import set_attention_direction
from nemodiff_trt.passes.transpose_linear_weights import transpose_linear_weights
from nemodiff_trt.passes.verify_contract import verify_contract
from nemodiff_trt.vocabulary import Role, Target


def once(options: PassOptions) -> int:
    """The pass concerns the graph as a whole."""
    return 1


def per_layer(options: PassOptions) -> int:
    """Once in every decoder layer."""
    return options.model.num_hidden_layers


def adapted_layers(options: PassOptions) -> int:
    """Every layer, unless there is no adapter to apply."""
    return options.model.num_hidden_layers if options.drafts_with_adapter else 0


def linears_after_fusion(options: PassOptions) -> int:
    """qkv, o, gate|up and down per layer, two more for a low-rank branch, and the vocabulary projection."""
    has_branch = options.drafts_with_adapter and options.adapter_form is AdapterForm.LOW_RANK
    return options.model.num_hidden_layers * (6 if has_branch else 4) + 1


_STORED_FOR_ONNX = (
    # Both fusions before the transposition: they join weights along their outputs while these are still rows.
    Stage(fuse_qkv, per_layer),
    Stage(fuse_gate_up, per_layer),
    Stage(transpose_linear_weights, linears_after_fusion),
    # Last: it judges the result.
    Stage(verify_contract, once),
)
_DECIDE = Stage(attach_decision_head, once)
_BIDIRECTIONAL = Stage(set_attention_direction, per_layer)

_ONNXRUNTIME: dict[Role, tuple[Stage, ...]] = {
    # The row is selected before the head is attached: it is found through the logits output, which the head replaces.
    Role.PREFILL: (Stage(select_last_position, once), _DECIDE, *_STORED_FOR_ONNX),
    Role.DECODE: (_DECIDE, *_STORED_FOR_ONNX),
    Role.VERIFY: (_DECIDE, *_STORED_FOR_ONNX),
    Role.DENOISE: (_BIDIRECTIONAL, _DECIDE, *_STORED_FOR_ONNX),
    # The adapter before the transposition: its matrices are linear layers like the others and are stored like them.
    Role.DRAFT: (_BIDIRECTIONAL, Stage(apply_draft_adapter, adapted_layers), _DECIDE, *_STORED_FOR_ONNX),
}

PIPELINES: dict[Target, dict[Role, tuple[Stage, ...]]] = {Target.ONNXRUNTIME: _ONNXRUNTIME}

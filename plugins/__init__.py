"""High-level operators of a decoding step, registered as `torch.ops.nemodiff.*` when this package is imported.

One folder per operator. `OPS` names them all with the forms each has; tests run over the table. Importing this package loads
neither onnx nor triton.
"""

from __future__ import annotations

from nemodiff_trt.plugins.accept_draft import accept_draft_reference
from nemodiff_trt.plugins.accept_draft_sampled import accept_draft_sampled_reference
from nemodiff_trt.plugins.attention import attention_reference
from nemodiff_trt.plugins.cache_update import cache_update_reference
from nemodiff_trt.plugins.commit_masks import commit_masks_reference
from nemodiff_trt.plugins.decision_head import decision_head_reference
from nemodiff_trt.plugins.decision_top_k import decision_top_k_reference
from nemodiff_trt.plugins.fp8_linear import fp8_linear_reference
from nemodiff_trt.plugins.masked_attention import masked_attention_reference
from nemodiff_trt.plugins.next_block import next_block_reference
from nemodiff_trt.plugins.nvfp4_linear import nvfp4_linear_reference
from nemodiff_trt.plugins.op import EVERYWHERE, Form, Op
from nemodiff_trt.plugins.rms_norm import rms_norm_reference
from nemodiff_trt.plugins.rotary import rotary_reference
from nemodiff_trt.plugins.round_to_fp8 import round_to_fp8_reference
from nemodiff_trt.plugins.round_to_nvfp4 import round_to_nvfp4_reference
from nemodiff_trt.plugins.select_position import select_position_reference
from nemodiff_trt.plugins.step_positions import step_positions_reference

__all__ = ["OPS", "Form", "Op", "find_op"]

OPS: tuple[Op, ...] = (
    Op("rms_norm", rms_norm_reference),
    Op("step_positions", step_positions_reference),
    Op("rotary", rotary_reference),
    Op("cache_update", cache_update_reference),
    Op("attention", attention_reference, EVERYWHERE),
    Op("masked_attention", masked_attention_reference, EVERYWHERE),
    Op("select_position", select_position_reference),
    Op("decision_head", decision_head_reference, EVERYWHERE | {Form.PLUGIN}),
    Op("decision_top_k", decision_top_k_reference, EVERYWHERE),
    Op("next_block", next_block_reference, EVERYWHERE),
    Op("commit_masks", commit_masks_reference, EVERYWHERE),
    Op("accept_draft", accept_draft_reference, EVERYWHERE),
    Op("accept_draft_sampled", accept_draft_sampled_reference, EVERYWHERE),
    # Targets that multiply in the formats, and those that emulate them.
    Op("fp8_linear", fp8_linear_reference, frozenset({Form.NETWORK})),
    Op("nvfp4_linear", nvfp4_linear_reference, frozenset({Form.NETWORK})),
    Op("round_to_fp8", round_to_fp8_reference, frozenset({Form.ONNX})),
    Op("round_to_nvfp4", round_to_nvfp4_reference, frozenset({Form.ONNX})),
)


def find_op(name: str) -> Op:
    """The operator of this name.

    Raises:
        LookupError: no operator has it.
    """
    for op in OPS:
        if op.name == name:
            return op
    raise LookupError(f"no operator {name!r}; there are {', '.join(op.name for op in OPS)}")

"""ONNX form of every operator that has one: a function of an emitter and the operator's own arguments.

Apart from the table in the package, so that the eager decoder does not load onnx.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from nemodiff_trt.plugins.attention.onnx_form import attention_onnx
from nemodiff_trt.plugins.cache_update.onnx_form import cache_update_onnx
from nemodiff_trt.plugins.decision_head.onnx_form import decision_head_onnx
from nemodiff_trt.plugins.quantized_linear.onnx_form import round_to_fp8_onnx, round_to_nvfp4_onnx
from nemodiff_trt.plugins.rms_norm.onnx_form import rms_norm_onnx
from nemodiff_trt.plugins.rotary.onnx_form import rotary_onnx
from nemodiff_trt.plugins.select_position.onnx_form import select_position_onnx
from nemodiff_trt.plugins.step_positions.onnx_form import step_positions_onnx

# Operator name below torch.ops.nemodiff -> form. Tensor arguments and results are value names.
ONNX_FORMS: dict[str, Callable[..., Any]] = {
    "rms_norm": rms_norm_onnx,
    "step_positions": step_positions_onnx,
    "rotary": rotary_onnx,
    "cache_update": cache_update_onnx,
    "attention": attention_onnx,
    "select_position": select_position_onnx,
    "decision_head": decision_head_onnx,
    "round_to_fp8": round_to_fp8_onnx,
    "round_to_nvfp4": round_to_nvfp4_onnx,
}

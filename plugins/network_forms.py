"""TensorRT network form of every operator that has one: a function of an emitter and the operator's own arguments."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from nemodiff_trt.plugins.attention.network_form import attention_network
from nemodiff_trt.plugins.cache_update.network_form import cache_update_network
from nemodiff_trt.plugins.decision_head.network_form import decision_head_network
from nemodiff_trt.plugins.quantized_linear.network_form import fp8_linear_network, nvfp4_linear_network
from nemodiff_trt.plugins.rms_norm.network_form import rms_norm_network
from nemodiff_trt.plugins.rotary.network_form import rotary_network
from nemodiff_trt.plugins.select_position.network_form import select_position_network
from nemodiff_trt.plugins.step_positions.network_form import step_positions_network

# Operator name below torch.ops.nemodiff -> form. Tensor arguments and results are network values.
NETWORK_FORMS: dict[str, Callable[..., Any]] = {
    "rms_norm": rms_norm_network,
    "step_positions": step_positions_network,
    "rotary": rotary_network,
    "cache_update": cache_update_network,
    "attention": attention_network,
    "select_position": select_position_network,
    "decision_head": decision_head_network,
    "fp8_linear": fp8_linear_network,
    "nvfp4_linear": nvfp4_linear_network,
}

"""High-level operators of a decoding step, registered as `torch.ops.nemodiff.*` when this package is imported.

One folder per operator. `OPS` names them all; tests run over the table.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from nemodiff_trt.plugins.attention import attention_reference
from nemodiff_trt.plugins.cache_update import cache_update_reference
from nemodiff_trt.plugins.decision_head import decision_head_reference
from nemodiff_trt.plugins.quantized_linear import (
    fp8_linear_reference,
    nvfp4_linear_reference,
    round_to_fp8_reference,
    round_to_nvfp4_reference,
)
from nemodiff_trt.plugins.rms_norm import rms_norm_reference
from nemodiff_trt.plugins.rotary import rotary_reference
from nemodiff_trt.plugins.select_position import select_position_reference
from nemodiff_trt.plugins.step_positions import step_positions_reference


@dataclass(frozen=True, slots=True)
class Op:
    """One operator: its name below `torch.ops.nemodiff` and its meaning in plain torch."""

    name: str
    reference: Callable[..., Any]


OPS: tuple[Op, ...] = (
    Op("rms_norm", rms_norm_reference),
    Op("step_positions", step_positions_reference),
    Op("rotary", rotary_reference),
    Op("cache_update", cache_update_reference),
    Op("attention", attention_reference),
    Op("select_position", select_position_reference),
    Op("decision_head", decision_head_reference),
    Op("fp8_linear", fp8_linear_reference),
    Op("nvfp4_linear", nvfp4_linear_reference),
    Op("round_to_fp8", round_to_fp8_reference),
    Op("round_to_nvfp4", round_to_nvfp4_reference),
)

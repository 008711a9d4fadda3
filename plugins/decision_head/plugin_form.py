"""`nemodiff::decision_head` as two TensorRT plugins that hold its Triton kernels: parts of the rows, then their best.

The logits are read once, where layers read them three times unless the compiler fuses them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nemodiff_trt.plugins.aot_plugin import AotPlugin, KernelLaunch, triton_type
from nemodiff_trt.plugins.decision_head.triton_form import LARGE_PART, SMALL_PART, builds_for
from nemodiff_trt.plugins.network_emitter import NetworkEmitter, NetworkTensor

_ATTRIBUTES = ("num_ids", "mask_id", "part_size")


def _num_parts(attributes: dict[str, int]) -> int:
    return -(-attributes["num_ids"] // attributes["part_size"])


def _numbers(attributes: dict[str, int]) -> tuple[int, int, int]:
    return attributes["num_ids"], _num_parts(attributes), attributes["mask_id"]


def _describe_part(api: Any, inputs: Sequence[Any], attributes: dict[str, int]) -> Sequence[tuple[tuple[Any, ...], Any]]:
    logits = inputs[0].shape_expr
    shape = (logits[0], logits[1], _num_parts(attributes))
    return [(shape, dtype) for dtype in (api.int32, api.int32, api.float32)]


def _launch_part(api: Any, inputs: Sequence[Any], attributes: dict[str, int]) -> KernelLaunch:
    logits = inputs[0]
    build, _ = builds_for(triton_type(api, logits.dtype), attributes["part_size"], attributes["num_ids"])
    rows = logits.shape_expr[0] * logits.shape_expr[1]
    return KernelLaunch(build, rows * _num_parts(attributes), _numbers(attributes))


def _describe_combine(api: Any, inputs: Sequence[Any], attributes: dict[str, int]) -> Sequence[tuple[tuple[Any, ...], Any]]:
    logits = inputs[0].shape_expr
    return [((logits[0], logits[1]), dtype) for dtype in (api.int64, api.float32)]


def _launch_combine(api: Any, inputs: Sequence[Any], attributes: dict[str, int]) -> KernelLaunch:
    logits = inputs[0]
    _, build = builds_for(triton_type(api, logits.dtype), attributes["part_size"], attributes["num_ids"])
    return KernelLaunch(build, logits.shape_expr[0] * logits.shape_expr[1], _numbers(attributes))


PART = AotPlugin("decision_head_part", ("logits",), _ATTRIBUTES, 3, _describe_part, _launch_part)
COMBINE = AotPlugin(
    "decision_head_combine", ("logits", "keys", "ids", "sums"), _ATTRIBUTES, 2, _describe_combine, _launch_combine
)


def decision_head_plugin(
    emit: NetworkEmitter, logits: NetworkTensor, mask_token_id: int
) -> tuple[NetworkTensor, NetworkTensor]:
    """Token int64 [B,S] and its probability fp32 [B,S] from `logits` [B,S,V].

    Raises:
        LoweringError: the network is for a target without plugins.
    """
    attributes = {
        "num_ids": int(logits.shape[2]),
        "mask_id": mask_token_id,
        # A network of one token a row has few rows.
        "part_size": SMALL_PART if logits.shape[1] == 1 else LARGE_PART,
    }
    partial = PART.add(emit, [logits], **attributes)
    token, confidence = COMBINE.add(emit, [logits, *partial], **attributes)
    return token, confidence

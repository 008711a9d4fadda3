"""TensorRT network form of every operator that has one: a function of an emitter and the operator's own arguments."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from nemodiff_trt.plugins import OPS, Form

# Operator name below torch.ops.nemodiff -> form. Tensor arguments and results are network values.
NETWORK_FORMS: dict[str, Callable[..., Any]] = {op.name: op.load(Form.NETWORK) for op in OPS if Form.NETWORK in op.forms}

"""ONNX form of every operator that has one: a function of an emitter and the operator's own arguments.

Apart from the table in the package, so that the eager decoder does not load onnx.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from nemodiff_trt.plugins import OPS, Form

# Operator name below torch.ops.nemodiff -> form. Tensor arguments and results are value names.
ONNX_FORMS: dict[str, Callable[..., Any]] = {op.name: op.load(Form.ONNX) for op in OPS if Form.ONNX in op.forms}

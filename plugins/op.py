"""What the table of operators records, without loading any of it.

A form is one way to realise an operator. It is written in the operator's own folder, in the module named after the form, under
the operator's name and the form's: `decision_head/onnx_form.py` holds `decision_head_onnx`. Forms import onnx, triton or a
TensorRT module, so they are loaded when they are first asked for.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

_PACKAGE = "nemodiff_trt.plugins"


class Form(StrEnum):
    """How an operator can be realised, beside its reference in plain torch. The value names the module.

    ONNX: a function of an `OnnxEmitter` that writes standard ONNX operators.
    NETWORK: a function of a `NetworkEmitter` that adds native TensorRT layers.
    TRITON: a `TritonForm`: kernels, how to launch them, what they take, the configurations that are compiled ahead of time.
    PLUGIN: as NETWORK, with plugins of the full TensorRT that hold those kernels.
    """

    ONNX = "onnx_form"
    NETWORK = "network_form"
    TRITON = "triton_form"
    PLUGIN = "plugin_form"


_SUFFIX = {Form.ONNX: "onnx", Form.NETWORK: "network", Form.TRITON: "triton", Form.PLUGIN: "plugin"}
LOWERED = frozenset({Form.ONNX, Form.NETWORK})
EVERYWHERE = LOWERED | {Form.TRITON}


@dataclass(frozen=True, slots=True)
class Op:
    """One operator: its name below `torch.ops.nemodiff`, its meaning in plain torch, and the forms it has."""

    name: str
    reference: Callable[..., Any]
    forms: frozenset[Form] = field(default=LOWERED)

    def load(self, form: Form) -> Any:
        """Import a form of this operator.

        Raises:
            LookupError: the operator has no such form.
            ImportError: the package the form is written with is not installed.
        """
        if form not in self.forms:
            raise LookupError(f"{self.name} has no {form}")
        module = importlib.import_module(f"{_PACKAGE}.{self.name}.{form}")
        return getattr(module, f"{self.name}_{_SUFFIX[form]}")

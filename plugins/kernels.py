"""Lets the operators run as Triton kernels on a device.

A choice: the eager decoder is what everything else is compared with, so by default it is plain torch.
"""

from __future__ import annotations

import importlib.util
from typing import Any

import torch

from nemodiff_trt.plugins import OPS, Form, Op


def has_triton() -> bool:
    """Whether the package triton is installed (extra `kernels`; part of torch built for CUDA)."""
    return importlib.util.find_spec("triton") is not None


def register_kernels(device_type: str = "cuda") -> tuple[str, ...]:
    """Let `torch.ops.nemodiff.*` run their Triton form on tensors of `device_type`, for the rest of this process.

    A call whose arguments the form does not take runs the reference.

    Returns:
        Names of the operators that have a Triton form.

    Raises:
        ImportError: triton is not installed.
    """
    chosen = [op for op in OPS if Form.TRITON in op.forms]
    for op in chosen:
        torch.library.register_kernel(f"nemodiff::{op.name}", device_type, _kernel_or_reference(op))
    return tuple(op.name for op in chosen)


def _kernel_or_reference(op: Op) -> Any:
    form = op.load(Form.TRITON)

    def run(*arguments: Any) -> Any:
        return form.launch(*arguments) if form.refuses(*arguments) is None else op.reference(*arguments)

    return run

"""How each operation of a step graph is written in ONNX: a literal table from FX target to converter.

Converters take the emitter and the node's own arguments, tensors replaced by value names.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import torch

import nemodiff_trt.plugins  # noqa: F401 - registers torch.ops.nemodiff
from nemodiff_trt.plugins.onnx_emitter import OnnxEmitter
from nemodiff_trt.plugins.onnx_forms import ONNX_FORMS

Converter = Callable[..., Any]
_aten = torch.ops.aten
_TO_ONNX = {torch.float32: onnx.TensorProto.FLOAT, torch.float16: onnx.TensorProto.FLOAT16}


def _embedding(emit: OnnxEmitter, weight: str, indices: str) -> str:
    return emit.op("Gather", [weight, indices], axis=0)


def _linear(emit: OnnxEmitter, x: str, weight: str) -> str:
    return emit.op("MatMul", [x, emit.op("Transpose", [weight], perm=[1, 0])])


def _matmul(emit: OnnxEmitter, x: str, weight: str) -> str:
    return emit.op("MatMul", [x, weight])


def _silu(emit: OnnxEmitter, x: str) -> str:
    return emit.op("Mul", [x, emit.op("Sigmoid", [x])])


def _operand(emit: OnnxEmitter, x: str, other: str | float) -> str:
    """A second operand: a tensor, or a number in the dtype of the first."""
    return other if isinstance(other, str) else emit.constant(np.array(other, dtype=emit.value(x).dtype))


def _mul(emit: OnnxEmitter, x: str, other: str | float) -> str:
    return emit.op("Mul", [x, _operand(emit, x, other)])


def _add(emit: OnnxEmitter, x: str, other: str | float) -> str:
    return emit.op("Add", [x, _operand(emit, x, other)])


def _unsqueeze(emit: OnnxEmitter, x: str, dim: int) -> str:
    return emit.op("Unsqueeze", [x, emit.integers(dim)])


def _slice(emit: OnnxEmitter, x: str, dim: int = 0, start: int | None = None, end: int | None = None) -> str:
    last = np.iinfo(np.int64).max
    bounds = (emit.integers(start or 0), emit.integers(last if end is None else end))
    return emit.op("Slice", [x, *bounds, emit.integers(dim)])


def _split(emit: OnnxEmitter, x: str, sizes: list[int], dim: int = 0) -> tuple[str, ...]:
    return emit.split(x, list(sizes), dim)


def _to_copy(emit: OnnxEmitter, x: str, dtype: torch.dtype) -> str:
    return emit.op("Cast", [x], to=_TO_ONNX[dtype])


def _getitem(emit: OnnxEmitter, pieces: tuple[str, ...], index: int) -> str:
    return pieces[index]


CONVERTERS: dict[Any, Converter] = {
    _aten.embedding.default: _embedding,
    _aten.linear.default: _linear,
    _aten.matmul.default: _matmul,
    _aten.silu.default: _silu,
    _aten.mul.Tensor: _mul,
    _aten.add.Tensor: _add,
    _aten.unsqueeze.default: _unsqueeze,
    _aten.slice.Tensor: _slice,
    _aten.split_with_sizes.default: _split,
    _aten._to_copy.default: _to_copy,  # noqa: SLF001 - the operator's own name
    operator.getitem: _getitem,
    **{getattr(torch.ops.nemodiff, name).default: form for name, form in ONNX_FORMS.items()},
}

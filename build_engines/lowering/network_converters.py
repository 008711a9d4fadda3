"""How each operation of a step graph becomes TensorRT layers: a literal table from FX target to converter.

Converters take the emitter and the node's own arguments, tensors replaced by network values.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch

import nemodiff_trt.plugins  # noqa: F401 - registers torch.ops.nemodiff
from nemodiff_trt.errors import LoweringError
from nemodiff_trt.plugins.network_emitter import Heads, NetworkEmitter, NetworkTensor, NetworkValue
from nemodiff_trt.plugins.network_forms import NETWORK_FORMS

Converter = Callable[..., Any]
_aten = torch.ops.aten


def network_dtype(api: Any, dtype: torch.dtype) -> Any:
    """The API's name of a torch dtype.

    Raises:
        LoweringError: TensorRT has no such type here.
    """
    known = {
        torch.float32: "float32",
        torch.float16: "float16",
        torch.bfloat16: "bfloat16",
        torch.float8_e4m3fn: "fp8",
        torch.float4_e2m1fn_x2: "fp4",
        torch.int64: "int64",
        torch.bool: "bool",
    }
    if dtype not in known:
        raise LoweringError(f"{dtype} has no TensorRT type here")
    return getattr(api, known[dtype])


def _embedding(emit: NetworkEmitter, weight: NetworkTensor, indices: NetworkTensor) -> NetworkTensor:
    return emit.output(emit.network.add_gather(weight, indices, 0))


def _silu(emit: NetworkEmitter, x: NetworkTensor) -> NetworkTensor:
    return emit.elementwise("PROD", x, emit.output(emit.network.add_activation(x, emit.api.ActivationType.SIGMOID)))


def _binary(operation: str) -> Converter:
    """Element-wise converter; a number takes the dtype of the other operand, and heads stay heads."""

    def convert(emit: NetworkEmitter, x: NetworkValue, other: NetworkTensor | float) -> NetworkValue:
        if isinstance(x, Heads):
            if not isinstance(other, (int, float)):
                raise LoweringError(f"{operation}: heads are combined with numbers only")
            return Heads(emit.elementwise(operation, x.tensor, emit.scalar(other, x.tensor)))
        operand = emit.scalar(other, x) if isinstance(other, (int, float)) else other
        return emit.elementwise(operation, x, operand)

    return convert


def _split(emit: NetworkEmitter, x: NetworkTensor, sizes: list[int], dim: int = 0) -> tuple[NetworkTensor, ...]:
    axis = dim % len(x.shape)
    starts = [sum(sizes[:index]) for index in range(len(sizes))]
    return tuple(emit.slice_axis(x, axis, start, size) for start, size in zip(starts, sizes, strict=True))


def _unsqueeze(emit: NetworkEmitter, x: NetworkTensor, dim: int) -> NetworkTensor:
    if dim not in (-1, len(x.shape)):
        raise LoweringError(f"an axis is added behind the others only, not at {dim}")
    return emit.reshape(x, (0,) * len(x.shape) + (1,))


def _to_copy(emit: NetworkEmitter, x: NetworkTensor, dtype: torch.dtype) -> NetworkTensor:
    return emit.cast(x, network_dtype(emit.api, dtype))


def _getitem(emit: NetworkEmitter, pieces: tuple[NetworkTensor, ...], index: int) -> NetworkTensor:
    return pieces[index]


NETWORK_CONVERTERS: dict[Any, Converter] = {
    _aten.embedding.default: _embedding,
    _aten.linear.default: NetworkEmitter.times_transposed,
    _aten.silu.default: _silu,
    _aten.mul.Tensor: _binary("PROD"),
    _aten.add.Tensor: _binary("SUM"),
    _aten.unsqueeze.default: _unsqueeze,
    _aten.split_with_sizes.default: _split,
    _aten._to_copy.default: _to_copy,  # noqa: SLF001 - the operator's own name
    operator.getitem: _getitem,
    **{getattr(torch.ops.nemodiff, name).default: form for name, form in NETWORK_FORMS.items()},
}

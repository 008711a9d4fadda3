"""Builds the node list of one ONNX graph (opset 24) for the operators' ONNX forms.

Equal nodes are written once: everything emitted here is a pure function of its inputs, so what several layers compute alike
(the attended length, a shape constant) is shared without the forms knowing of each other.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

OPSET = 24


@dataclass(frozen=True, slots=True)
class Value:
    """What is known of a tensor: numpy dtype name, and shape with axis letters for dynamic axes."""

    dtype: str
    shape: tuple[int | str, ...]


class OnnxEmitter:
    """Nodes and small constants of a graph under construction; weights are only named."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self._values: dict[str, Value] = {}
        self._written: dict[tuple[Any, ...], str] = {}
        self._first_with_axis: dict[str, tuple[str, int]] = {}

    def declare(self, name: str, dtype: str, shape: tuple[int | str, ...]) -> None:
        """Say what `name` is, so that forms can ask `value` and `size`."""
        self._values[name] = Value(dtype, shape)
        for axis, extent in enumerate(shape):
            if isinstance(extent, str):
                self._first_with_axis.setdefault(extent, (name, axis))

    def value(self, name: str) -> Value:
        """What was declared of `name`."""
        return self._values[name]

    def op(self, kind: str, inputs: list[str], **attributes: Any) -> str:
        """Emit one single-output node, or find the equal one that exists. Returns the name of its output."""
        key = (kind, tuple(inputs), tuple(sorted((name, str(value)) for name, value in attributes.items())))
        if key not in self._written:
            output = f"{kind}_{len(self.nodes)}"
            self.nodes.append(helper.make_node(kind, inputs, [output], name=output, **attributes))
            self._written[key] = output
        return self._written[key]

    def ops(self, kind: str, inputs: list[str], num_outputs: int, **attributes: Any) -> tuple[str, ...]:
        """Emit one node of several outputs. Returns their names."""
        name = f"{kind}_{len(self.nodes)}"
        outputs = tuple(f"{name}_{index}" for index in range(num_outputs))
        self.nodes.append(helper.make_node(kind, inputs, list(outputs), name=name, **attributes))
        return outputs

    def split(self, name: str, sizes: list[int], axis: int) -> tuple[str, ...]:
        """Emit `Split` of `name` into pieces of `sizes` along `axis`."""
        return self.ops("Split", [name, self.integers(*sizes)], len(sizes), axis=axis)

    def constant(self, array: np.ndarray) -> str:
        """Name of an initializer with the content of `array`; meant for shapes, indices and scalars."""
        key = ("", array.dtype.str, array.shape, array.tobytes())
        if key not in self._written:
            name = f"constant_{len(self.constants)}"
            self.constants.append(numpy_helper.from_array(np.asarray(array), name))
            self._written[key] = name
        return self._written[key]

    def integers(self, *values: int) -> str:
        """int64 [n] constant."""
        return self.constant(np.array(values, dtype=np.int64))

    def number(self, value: float) -> str:
        """fp32 [] constant."""
        return self.constant(np.array(value, np.float32))

    def through_e4m3(self, name: str) -> str:
        """fp32 numbers in e4m3 and back; the cast saturates and takes ties to the even number."""
        narrow = self.op("Cast", [name], to=onnx.TensorProto.FLOAT8E4M3FN, saturate=1)
        return self.op("Cast", [narrow], to=onnx.TensorProto.FLOAT)

    def size(self, name: str, axis: int) -> str:
        """int64 [1]: the extent of `axis` of `name`, read off the first tensor known to have that axis."""
        extent = self._values[name].shape[axis]
        if isinstance(extent, int):
            return self.integers(extent)
        source, source_axis = self._first_with_axis[extent]
        return self.op("Shape", [source], start=source_axis, end=source_axis + 1)

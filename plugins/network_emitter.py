"""Adds layers to a TensorRT network for the operators' network forms.

One class serves TensorRT-RTX and TensorRT: their Python modules have the same API, and the module is a parameter. Sizes of
dynamic axes are shape tensors; equal ones are emitted once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

# A tensor of the network (`ITensor`), whose class belongs to whichever API module is in use.
NetworkTensor = Any


@dataclass(frozen=True, slots=True)
class Heads:
    """A graph value [B,S,N*D] that the network holds as [B,N,S,D]: most consumers want it so, and turning it costs a kernel."""

    tensor: NetworkTensor


NetworkValue = NetworkTensor | Heads | tuple[NetworkTensor, ...]


class NetworkEmitter:
    """A network under construction. `weights` of the graph are tensors like any other here.

    `plugin_sm` is the compute capability that kernels of plugins are compiled for; None where there are no plugins.
    `mixes_batches` says that a profile takes one sequence as well as several.
    """

    def __init__(self, api: Any, network: Any, plugin_sm: int | None = None, mixes_batches: bool = False) -> None:
        self.api = api
        self.network = network
        self.plugin_sm = plugin_sm
        self.mixes_batches = mixes_batches
        # The network refers to the memory of constants until it is compiled.
        self._arrays: list[np.ndarray] = []
        self._once: dict[tuple[Any, ...], NetworkTensor] = {}

    def once(self, key: tuple[Any, ...], make: Callable[[], NetworkTensor]) -> NetworkTensor:
        """What `make` emitted when `key` was first asked for: layers compute some things alike."""
        if key not in self._once:
            self._once[key] = make()
        return self._once[key]

    def constant(self, array: np.ndarray) -> NetworkTensor:
        """Constant with the content, dtype and shape of `array` (float32, int32 or int64)."""
        array = np.asarray(array, order="C")
        self._arrays.append(array)
        return self.output(self.network.add_constant(array.shape, self.api.Weights(array)))

    def scalar(self, value: float, like: NetworkTensor) -> NetworkTensor:
        """`value` in the dtype of `like`, with as many axes of extent 1 as `like` has."""
        filled = np.full((1,) * len(like.shape), value, np.float32)
        return self.cast(self.constant(filled), like.dtype)

    def output(self, layer: Any, index: int = 0) -> NetworkTensor:
        """Tensor number `index` of a layer."""
        return layer.get_output(index)

    def elementwise(self, operation: str, left: NetworkTensor, right: NetworkTensor) -> NetworkTensor:
        """`operation` is a name of `ElementWiseOperation`: SUM, PROD, SUB, DIV, EQUAL, ..."""
        kind = getattr(self.api.ElementWiseOperation, operation)
        return self.output(self.network.add_elementwise(left, right, kind))

    def unary(self, operation: str, x: NetworkTensor) -> NetworkTensor:
        """`operation` is a name of `UnaryOperation`: EXP, SQRT, RECIP, ..."""
        return self.output(self.network.add_unary(x, getattr(self.api.UnaryOperation, operation)))

    def reduce_last(self, operation: str, x: NetworkTensor) -> NetworkTensor:
        """Reduce the last axis to extent 1; `operation` is a name of `ReduceOperation`: SUM, AVG, MAX, MIN."""
        axes = 1 << (len(x.shape) - 1)
        return self.output(self.network.add_reduce(x, getattr(self.api.ReduceOperation, operation), axes, True))

    def cast(self, x: NetworkTensor, dtype: Any) -> NetworkTensor:
        return x if x.dtype == dtype else self.output(self.network.add_cast(x, dtype))

    def reshape(self, x: NetworkTensor, dims: tuple[int, ...]) -> NetworkTensor:
        """Static target shape; 0 keeps the extent of that axis, -1 is inferred."""
        layer = self.network.add_shuffle(x)
        layer.reshape_dims = dims
        return self.output(layer)

    def scale_features(self, x: NetworkTensor, factors: NetworkTensor) -> NetworkTensor:
        """`x` [B,S,N] times `factors` [N].

        Where both B and S may be 1, factors [1,1,N] may have the shape of all of `x`, and TensorRT-RTX 1.7 cuts kernels in two
        that it could fuse; of rows [B*S,N] it does not think so.
        """
        if not self.mixes_batches:
            return self.elementwise("PROD", x, self.reshape(factors, (1, 1, -1)))
        rows = self.elementwise("PROD", self.reshape(x, (-1, x.shape[2])), self.reshape(factors, (1, -1)))
        layer = self.network.add_shuffle(rows)
        layer.set_input(1, self.shape(x))
        return self.output(layer)

    def shape(self, x: NetworkTensor) -> NetworkTensor:
        """int64 [rank] shape tensor of `x`."""
        return self.once(("shape", x.name), lambda: self.output(self.network.add_shape(x)))

    def extent(self, x: NetworkTensor, axis: int) -> NetworkTensor:
        """int64 [1] shape tensor: size of one axis of `x`."""
        return self.once(
            ("extent", x.name, axis), lambda: self.output(self.network.add_slice(self.shape(x), (axis,), (1,), (1,)))
        )

    def slice_axis(self, x: NetworkTensor, axis: int, start: int, size: int) -> NetworkTensor:
        """`size` consecutive entries of one static axis, all of the others."""
        rank = len(x.shape)
        starts, zeros = [0] * rank, [0] * rank
        starts[axis] = start
        layer = self.network.add_slice(x, tuple(starts), tuple(zeros), (1,) * rank)
        extents = [self.constant(np.array([size], np.int64)) if a == axis else self.extent(x, a) for a in range(rank)]
        layer.set_input(2, self.sizes(extents))
        return self.output(layer)

    def sizes(self, extents: list[NetworkTensor]) -> NetworkTensor:
        """int64 [rank] shape tensor of int64 [1] shape tensors."""
        layer = self.network.add_concatenation(extents)
        layer.axis = 0
        return self.output(layer)

    def dequantize(self, x: NetworkTensor, scale: NetworkTensor, dtype: Any) -> NetworkTensor:
        """`x` in a narrow format times its scale, in `dtype`; one scale, or one for a block of the last axis."""
        return self.output(self.network.add_dequantize(x, scale, dtype))

    def times_transposed(self, x: NetworkTensor, matrix: NetworkTensor) -> NetworkTensor:
        """`x` [B,S,in] times `matrix` [out,in], transposed by the product itself.

        A transposition of its own copies the matrix at every step when it is an input, and so does a matrix stored as [in,out]
        for products of one row.
        """
        operation = self.api.MatrixOperation
        stacked = self.reshape(matrix, (1, *tuple(matrix.shape)))
        return self.output(self.network.add_matrix_multiply(x, operation.NONE, stacked, operation.TRANSPOSE))

    def heads(self, value: NetworkValue, num_heads: int) -> NetworkTensor:
        """`value` [B,S,N*D] as [B,N,S,D]."""
        if isinstance(value, Heads):
            return value.tensor
        layer = self.network.add_shuffle(value)
        layer.reshape_dims = (0, 0, num_heads, value.shape[2] // num_heads)  # type: ignore[union-attr]
        layer.second_transpose = (0, 2, 1, 3)
        return self.output(layer)

    def from_heads(self, x: NetworkTensor) -> NetworkTensor:
        """[B,N,S,D] as [B,S,N*D]."""
        layer = self.network.add_shuffle(x)
        layer.first_transpose = (0, 2, 1, 3)
        layer.reshape_dims = (0, 0, x.shape[1] * x.shape[3])
        return self.output(layer)

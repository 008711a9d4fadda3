"""Small decoders written with the TensorRT-RTX API, some with a defect on purpose: what the plan audit is tested on.

Nothing runs: a plan is built for SM120 on any machine, with or without a GPU. Axis letters as in nemodiff_trt/contract.py.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass, field
from typing import Any

import numpy as np

DYNAMIC = -1


def require_tensorrt_rtx() -> Any:
    """The API module. Missing is a failure, never a skip: a check that did not run must not look like one that passed."""
    if importlib.util.find_spec("tensorrt_rtx") is None:
        raise RuntimeError("these tests build TensorRT-RTX plans: install the package tensorrt-rtx-cu13 (extra `dev` or `rtx`)")
    import tensorrt_rtx

    return tensorrt_rtx


@dataclass(frozen=True, slots=True)
class Sizes:
    """Sizes of a decoder; `steps` holds the (smallest, largest) step of each profile."""

    num_layers: int = 2
    hidden: int = 512
    num_heads: int = 8
    num_kv_heads: int = 2
    head_dim: int = 64
    capacity: int = 1024
    vocab: int = 4096
    max_batch: int = 1
    steps: tuple[tuple[int, int], ...] = ((32, 32),)

    @property
    def query_width(self) -> int:
        return self.num_heads * self.head_dim

    @property
    def qkv_width(self) -> int:
        return (self.num_heads + 2 * self.num_kv_heads) * self.head_dim


@dataclass(frozen=True, slots=True)
class Defects:
    """What is wrong with a decoder; nothing by default."""

    # The rotated query is no network output: the compiler expands the caches at S > 1.
    no_query_boundary: bool = False
    # Weights stored [in,out], as a plain multiplication wants them: S = 1 turns them round at every step.
    in_out_weights: bool = False
    # Weights stored [out,in] and transposed by a shuffle before the multiplication.
    shuffled_weights: bool = False
    # Attention sees the whole capacity.
    no_lengths: bool = False
    # matmul, exponential, sum, division, matmul instead of an attention layer.
    explicit_attention: bool = False
    # The linear layers calculate in fp32; weights are stored as fp32.
    fp32_linears: bool = False
    # The plan holds the matrices as constants of its own, although its weights are meant to be shared inputs.
    baked_weights: bool = False
    # Weights stored as NVFP4 and multiplied with bf16 activations: every step widens all of them.
    weight_only_nvfp4: bool = False
    # NVFP4 with the block scales as inputs, which the multiplication wants in another order.
    scales_as_inputs: bool = False
    # The number of output tokens depends on their values: the host waits for the device.
    size_from_data: bool = False
    causal: bool = True


@dataclass(slots=True)
class Decoder:
    """A network under construction, and the arrays its constants point to."""

    trt: Any
    sizes: Sizes
    defects: Defects
    net: Any
    lengths: Any = None
    index: Any = None
    positions: Any = None
    weights: dict[str, tuple[str, tuple[int, ...]]] = field(default_factory=dict)
    # Weights of the plan that are constants, and meant to be.
    embedded: set[str] = field(default_factory=set)
    kept: list[Any] = field(default_factory=list)

    def constant(self, array: np.ndarray[Any, Any]) -> Any:
        self.kept.append(array)
        return self.net.add_constant(array.shape, self.trt.Weights(array)).get_output(0)

    def matrix_constant(self, dtype: Any, *shape: int) -> Any:
        array = np.random.default_rng(len(self.kept)).integers(0x3C00, 0x3F00, shape).astype(np.uint16)
        self.kept.append(array)
        return self.net.add_constant(shape, self.trt.Weights(dtype, array.ctypes.data, array.size)).get_output(0)

    def weight(self, name: str, *shape: int, dtype: str = "bfloat16") -> Any:
        self.weights[name] = (dtype, shape)
        return self.net.add_input(name, getattr(self.trt, dtype), shape)

    def shuffle(self, x: Any, reshape: tuple[int, ...] | None = None, first: Any = None, second: Any = None) -> Any:
        layer = self.net.add_shuffle(x)
        if first is not None:
            layer.first_transpose = first
        if reshape is not None:
            layer.reshape_dims = reshape
        if second is not None:
            layer.second_transpose = second
        return layer.get_output(0)

    def elementwise(self, a: Any, b: Any, operation: str) -> Any:
        return self.net.add_elementwise(a, b, getattr(self.trt.ElementWiseOperation, operation)).get_output(0)

    def cast(self, x: Any, dtype: Any) -> Any:
        return self.net.add_cast(x, dtype).get_output(0)

    def slice_last(self, x: Any, start: int, size: int) -> Any:
        """x[..., start : start + size] of [B,S,*]."""
        axes = self.net.add_slice(self.net.add_shape(x).get_output(0), (0,), (2,), (1,)).get_output(0)
        sizes = self.net.add_concatenation([axes, self.constant(np.array([size], np.int64))])
        sizes.axis = 0
        layer = self.net.add_slice(x, (0, 0, start), (0, 0, size), (1, 1, 1))
        layer.set_input(2, sizes.get_output(0))
        return layer.get_output(0)

    def linear(self, x: Any, name: str, in_features: int, out_features: int) -> Any:
        """X @ W.T for x [B,S,in]; what becomes of W depends on the defects."""
        trt, defects = self.trt, self.defects
        if defects.weight_only_nvfp4 or defects.scales_as_inputs:
            return self.quantized_linear(x, name, in_features, out_features)
        dtype = "float32" if defects.fp32_linears else "bfloat16"
        plain, transposed = trt.MatrixOperation.NONE, trt.MatrixOperation.TRANSPOSE
        if defects.baked_weights:
            operand, how = self.matrix_constant(trt.bfloat16, 1, out_features, in_features), transposed
            self.weights[f"{name}.weight"] = (dtype, (out_features, in_features))
        elif defects.in_out_weights:
            weight = self.weight(f"{name}.weight", in_features, out_features, dtype=dtype)
            operand, how = self.shuffle(weight, (1, in_features, out_features)), plain
        else:
            weight = self.weight(f"{name}.weight", out_features, in_features, dtype=dtype)
            operand, how = self.shuffle(weight, (1, out_features, in_features)), transposed
            if defects.shuffled_weights:
                operand, how = self.shuffle(weight, (1, in_features, out_features), first=(1, 0)), plain
        source = self.cast(x, trt.float32) if defects.fp32_linears else x
        y = self.net.add_matrix_multiply(source, plain, operand, how).get_output(0)
        return self.cast(y, x.dtype) if defects.fp32_linears else y

    def quantized_linear(self, x: Any, name: str, in_features: int, out_features: int) -> Any:
        """NVFP4 weights, one scale per 16 values, with NVFP4 activations or with activations as they are."""
        trt, net, blocks = self.trt, self.net, in_features // 16
        scale = self.constant(np.array(0.01, np.float32))
        x = self.shuffle(x, (-1, in_features))
        if self.defects.weight_only_nvfp4:
            scales = self.constant_scales(f"{name}.weight_scale", out_features, blocks)
        else:
            dynamic = net.add_dynamic_quantize(x, 1, 16, trt.fp4, trt.fp8)
            dynamic.set_input(1, scale)
            x = self.dequantize(dynamic.get_output(0), self.dequantize(dynamic.get_output(1), scale))
            scales = self.weight(f"{name}.weight_scale", out_features, blocks, dtype="fp8")
        stored = self.weight(f"{name}.weight", out_features, in_features, dtype="fp4")
        weight = self.dequantize(stored, self.dequantize(scales, scale))
        operation = trt.MatrixOperation
        y = net.add_matrix_multiply(x, operation.NONE, weight, operation.TRANSPOSE).get_output(0)
        return self.shuffle(y, (1, -1, out_features))

    def constant_scales(self, name: str, *shape: int) -> Any:
        self.weights[name] = ("fp8", shape)
        self.embedded.add(name)
        array = np.full(shape, 0x38, np.uint8)
        self.kept.append(array)
        return self.net.add_constant(shape, self.trt.Weights(self.trt.fp8, array.ctypes.data, array.size)).get_output(0)

    def dequantize(self, x: Any, scale: Any) -> Any:
        return self.net.add_dequantize(x, scale, self.trt.bfloat16).get_output(0)

    def norm(self, x: Any, name: str, width: int) -> Any:
        trt = self.trt
        wide = self.cast(x, trt.float32)
        square = self.elementwise(wide, wide, "PROD")
        mean = self.net.add_reduce(square, trt.ReduceOperation.AVG, 1 << 2, True).get_output(0)
        shifted = self.elementwise(mean, self.constant(np.full((1, 1, 1), 1e-5, np.float32)), "SUM")
        root = self.net.add_unary(shifted, trt.UnaryOperation.SQRT).get_output(0)
        normed = self.cast(self.elementwise(wide, root, "DIV"), x.dtype)
        return self.elementwise(normed, self.shuffle(self.weight(f"{name}.weight", width), (1, 1, width)), "PROD")

    def heads(self, x: Any, num_heads: int) -> Any:
        """[B,S,N*D] -> [B,N,S,D]."""
        return self.shuffle(x, (0, 0, num_heads, self.sizes.head_dim), second=(0, 2, 1, 3))

    def rotary(self, x: Any, tables: tuple[Any, Any]) -> Any:
        layer = self.net.add_rotary_embedding(x, *tables, False, 0)
        layer.set_input(3, self.positions)
        return layer.get_output(0)

    def cache(self, name: str, layer: int, new: Any) -> Any:
        sizes = self.sizes
        batch = DYNAMIC if sizes.max_batch > 1 else 1
        past = self.net.add_input(
            f"past_{name}_{layer}", self.trt.bfloat16, (batch, sizes.num_kv_heads, sizes.capacity, sizes.head_dim)
        )
        updated = self.net.add_kv_cache_update(past, new, self.index, self.trt.KVCacheMode.LINEAR).get_output(0)
        updated.name = f"present_{name}_{layer}"
        self.net.mark_output(updated)
        return updated

    def attention(self, query: Any, key: Any, value: Any, layer: int) -> Any:
        trt, defects, sizes = self.trt, self.defects, self.sizes
        scale = self.cast(self.constant(np.full((1, 1, 1, 1), sizes.head_dim**-0.5, np.float32)), query.dtype)
        query = self.elementwise(query, scale, "PROD")
        if not defects.no_query_boundary:
            query = self.net.add_identity(query).get_output(0)
            query.name = f"query_{layer}"
            self.net.mark_output(query)
        if defects.explicit_attention:
            return self.explicit_attention(query, key, value)
        kind = trt.CausalMaskKind.LOWER_RIGHT if defects.causal else trt.CausalMaskKind.NONE
        fused = self.net.add_attention_v2(query, key, value, trt.AttentionNormalizationOp.SOFTMAX, kind)
        fused.decomposable = False
        if not defects.no_lengths:
            fused.key_value_lengths = self.lengths
        return fused.get_output(0)

    def explicit_attention(self, query: Any, key: Any, value: Any) -> Any:
        """Without a mask: what counts here is which kernels it becomes. Needs as many KV heads as query heads."""
        operation = self.trt.MatrixOperation
        scores = self.net.add_matrix_multiply(query, operation.NONE, key, operation.TRANSPOSE).get_output(0)
        weights = self.net.add_unary(scores, self.trt.UnaryOperation.EXP).get_output(0)
        total = self.net.add_reduce(weights, self.trt.ReduceOperation.SUM, 1 << 3, True).get_output(0)
        shares = self.elementwise(weights, total, "DIV")
        return self.net.add_matrix_multiply(shares, operation.NONE, value, operation.NONE).get_output(0)

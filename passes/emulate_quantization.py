"""Quantised linear layers in the arithmetic of the engine: inputs are rounded to the format, matrices are stored as what they
stand for.

before: fp8_linear(x, W.fp8, weight scale, input scale)          (nvfp4_linear alike)
after:  linear(round_to_fp8(x, input scale), W.fp8_dequantized)

For targets without products in the formats. The results are those of the formats up to the order of sums; speed and memory are
not.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import fx

import nemodiff_trt.plugins  # noqa: F401 - registers torch.ops.nemodiff
from nemodiff_trt.bundle import Encoding
from nemodiff_trt.passes.base import PassOptions, PassReport
from nemodiff_trt.passes.graph import NODE_VALUE, StepGraph

_LINEAR = torch.ops.aten.linear.default
_ops = torch.ops.nemodiff
_ROUND: dict[Any, tuple[Any, Encoding]] = {
    _ops.fp8_linear.default: (_ops.round_to_fp8.default, Encoding.FP8_DEQUANTIZED),
    _ops.nvfp4_linear.default: (_ops.round_to_nvfp4.default, Encoding.NVFP4_DEQUANTIZED),
}


def emulate_quantization(graph: StepGraph, options: PassOptions) -> PassReport:
    """Count: quantised linear layers that became plain ones over a rounded input."""
    nodes = graph.calls(*_ROUND)
    for node in nodes:
        rounding, encoding = _ROUND[node.target]
        x, codes, input_scale = node.args[0], node.args[1], node.args[-1]
        assert isinstance(x, fx.Node), "an operator's tensor argument"
        assert isinstance(codes, fx.Node), "an operator's tensor argument"
        value = x.meta[NODE_VALUE]
        layout = graph.weights[str(codes.target)]
        stored = dataclasses.replace(layout, dtype=str(value.dtype).removeprefix("torch."), encoding=encoding)
        matrix = value.new_empty((codes.meta[NODE_VALUE].shape[0], value.shape[-1]))
        weight = graph.add_weight(f"{codes.target}_dequantized", stored, matrix)
        rounded = graph.call(node, rounding, x, input_scale)
        node.replace_all_uses_with(graph.call(node, _LINEAR, rounded, weight))
        graph.graph.erase_node(node)
    return PassReport(emulate_quantization.__name__, len(nodes))

"""Linear layers that the recipe names take their input and their matrix in FP8 or NVFP4.

before: linear(x, W)                                             W [out,in]
after:  fp8_linear(x, W.fp8, weight scale, input scale)          or
        nvfp4_linear(x, W.nvfp4, block scales, weight scale, input scale)

The graph holds no number of the quantisation: codes and scales are stored weights, made from checkpoint and calibration when
the weight file is written. After the fusions, so that matrices that are one share their scales.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import fx

import nemodiff_trt.plugins  # noqa: F401 - registers torch.ops.nemodiff
from nemodiff_trt.bundle import Encoding, WeightLayout
from nemodiff_trt.passes.base import PassOptions, PassReport, Refusal
from nemodiff_trt.passes.graph import NODE_VALUE, StepGraph, weight_name
from nemodiff_trt.quantization.recipe import layer_of
from nemodiff_trt.vocabulary import NVFP4_BLOCK, LinearFormat

_LINEAR = torch.ops.aten.linear.default
_FP8, _NVFP4 = torch.ops.nemodiff.fp8_linear.default, torch.ops.nemodiff.nvfp4_linear.default

# Name behind the matrix's own, what of it is stored, dtype, and how many columns share an entry; 0 for one entry in all.
_Part = tuple[str, Encoding, torch.dtype, int]
_PARTS: dict[LinearFormat, tuple[_Part, ...]] = {
    LinearFormat.FP8: (
        ("fp8", Encoding.FP8, torch.float8_e4m3fn, 1),
        ("fp8.weight_scale", Encoding.FP8_WEIGHT_SCALE, torch.float32, 0),
        ("fp8.input_scale", Encoding.FP8_INPUT_SCALE, torch.float32, 0),
    ),
    LinearFormat.NVFP4: (
        ("nvfp4", Encoding.NVFP4, torch.float4_e2m1fn_x2, 2),
        ("nvfp4.block_scales", Encoding.NVFP4_BLOCK_SCALES, torch.float8_e4m3fn, NVFP4_BLOCK),
        ("nvfp4.weight_scale", Encoding.NVFP4_WEIGHT_SCALE, torch.float32, 0),
        ("nvfp4.input_scale", Encoding.NVFP4_INPUT_SCALE, torch.float32, 0),
    ),
}
_OPERATORS: dict[LinearFormat, Any] = {LinearFormat.FP8: _FP8, LinearFormat.NVFP4: _NVFP4}


def quantize_linears(graph: StepGraph, options: PassOptions) -> PassReport:
    """Count: linear layers that became quantised ones."""
    changed, refusals = 0, []
    for node in graph.calls(_LINEAR):
        reason = _refusal(graph, node)
        if reason:
            refusals.append(Refusal(node.name, reason))
            continue
        weight = node.args[1]
        assert isinstance(weight, fx.Node), "checked by _refusal"
        layout = graph.weights[str(weight.target)]
        form = options.recipe.format_of(layer_of(layout.sources[0])) if options.recipe else None
        if form is None:
            continue
        _quantize(graph, node, weight, layout, form)
        changed += 1
    return PassReport(quantize_linears.__name__, changed, tuple(refusals))


def _refusal(graph: StepGraph, node: fx.Node) -> str | None:
    name = weight_name(node.args[1])
    if name is None:
        return "its matrix is not a stored weight"
    if len(node.args) > 2:
        return "the layer has a bias"
    layout = graph.weights[name]
    if layout.transposed or layout.encoding is not Encoding.PLAIN:
        return "its matrix is already stored in a form of its own"
    return None


def _quantize(graph: StepGraph, node: fx.Node, weight: fx.Node, layout: WeightLayout, form: LinearFormat) -> None:
    value = weight.meta[NODE_VALUE]
    rows, columns = value.shape
    parts = []
    for suffix, encoding, dtype, sharing in _PARTS[form]:
        stored = dataclasses.replace(layout, dtype=str(dtype).removeprefix("torch."), encoding=encoding)
        part = value.new_empty((rows, columns // sharing) if sharing else (), dtype=dtype)
        parts.append(graph.add_weight(f"{weight.target}.{suffix}", stored, part))
    quantized = graph.call(node, _OPERATORS[form], node.args[0], *parts)
    node.replace_all_uses_with(quantized)
    graph.graph.erase_node(node)

"""Shared work of `fuse_qkv` and `fuse_gate_up`: several linear layers over one input become one, whose result is split.

One wide product reads its input once and fills the machine better than several narrow ones; with the weights as inputs of an
engine no compiler would join them, because it cannot lay them out side by side.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import fx

from nemodiff_trt.bundle import Combine, WeightLayout
from nemodiff_trt.passes.graph import NODE_VALUE, StepGraph, is_call, weight_name

LINEAR = torch.ops.aten.linear.default
_SPLIT = torch.ops.aten.split_with_sizes.default


def why_not(graph: StepGraph, linears: tuple[object, ...]) -> str | None:
    """Reason why `linears` cannot become one, None when they can."""
    if not all(is_call(node, LINEAR) for node in linears):
        return "not made of linear layers"
    nodes = [node for node in linears if isinstance(node, fx.Node)]
    if any(len(node.args) > 2 for node in nodes):
        return "a layer has a bias"
    if len({node.args[0] for node in nodes}) > 1:
        return "the layers read different inputs"
    names = [weight_name(node.args[1]) for node in nodes]
    layouts = [graph.weights[name] for name in names if name is not None]
    if len(set(names)) < len(nodes) or len(layouts) < len(nodes):
        return "the layers do not have a weight each"
    if any(layout.transposed or layout.combine is not Combine.CONCAT for layout in layouts):
        return "a weight is already stored in a form of its own"
    if len({layout.dtype for layout in layouts}) > 1:
        return "the weights have different dtypes"
    return None


def fuse(graph: StepGraph, linears: tuple[fx.Node, ...], fused_name: str) -> None:
    """Replace `linears`, for which `why_not` found nothing, by one layer with weight `fused_name` and a split."""
    layouts = [graph.weights[str(node.args[1].target)] for node in linears]  # type: ignore[union-attr]
    values = [node.args[1].meta[NODE_VALUE] for node in linears]  # type: ignore[union-attr]
    sources = tuple(source for layout in layouts for source in layout.sources)
    layout: WeightLayout = dataclasses.replace(layouts[0], sources=sources)
    weight = graph.add_weight(fused_name, layout, torch.cat(values))
    # The first of them comes after their common input and before all their users.
    first = min(linears, key=list(graph.graph.nodes).index)
    wide = graph.call(first, LINEAR, linears[0].args[0], weight)
    split = graph.call(first, _SPLIT, wide, [value.shape[0] for value in values], -1)
    for node, piece in zip(linears, graph.pieces(split), strict=True):
        node.replace_all_uses_with(piece)
        graph.graph.erase_node(node)

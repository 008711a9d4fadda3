"""Store the weights of linear layers as [in,out], the operand order of an ONNX `MatMul`.

before: linear(x, W)          W [out,in]
after:  matmul(x, W')         W' [in,out], the same numbers laid out once when the bundle is written

Reference: https://onnx.ai/onnx/operators/onnx__MatMul.html; a `Transpose` in the graph would run at every step, because the
weights come from outside.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import fx

from nemodiff_trt.passes.base import PassOptions, PassReport, Refusal
from nemodiff_trt.passes.graph import NODE_VALUE, StepGraph, is_call, weight_name

_LINEAR, _MATMUL = torch.ops.aten.linear.default, torch.ops.aten.matmul.default


def transpose_linear_weights(graph: StepGraph, options: PassOptions) -> PassReport:
    """Count: linear layers that became products with a stored [in,out] matrix."""
    changed, refusals = 0, []
    for node in graph.calls(_LINEAR):
        reason = _refusal(node)
        if reason:
            refusals.append(Refusal(node.name, reason))
            continue
        weight = node.args[1]
        assert isinstance(weight, fx.Node), "checked by _refusal"
        name = str(weight.target)
        if not graph.weights[name].transposed:
            graph.weights[name] = dataclasses.replace(graph.weights[name], transposed=True)
            weight.meta[NODE_VALUE] = weight.meta[NODE_VALUE].t()
        node.target = _MATMUL
        changed += 1
    return PassReport(transpose_linear_weights.__name__, changed, tuple(refusals))


def _refusal(node: fx.Node) -> str | None:
    weight = node.args[1]
    if len(node.args) > 2:
        return "the layer has a bias"
    if weight_name(weight) is None or not isinstance(weight, fx.Node):
        return "its matrix is not a stored weight"
    plain = [user for user in weight.users if not is_call(user, _LINEAR) and not is_call(user, _MATMUL)]
    if plain:
        return f"{weight.target} is also read as it is by {plain[0].name}"
    return None

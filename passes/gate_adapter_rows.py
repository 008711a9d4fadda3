"""Apply the draft adapter to the tokens of a step that an input names, and to no other.

before: y = linear(x, W) + linear(linear(x, A), B) * scale
after:  y = linear(x, W) + linear(linear(x, A) * gate, B)      with gate [B,S,1] = adapter_rows * scale, once for all layers

The gate multiplies between the two matrices, where a token has the fewest numbers. Where it is 0 the branch adds exact zeros,
so such a token is what it is without adapter.
"""

from __future__ import annotations

import torch
from torch import fx

import nemodiff_trt.plugins  # noqa: F401 - registers torch.ops.nemodiff
from nemodiff_trt.contract import ADAPTER_ROWS
from nemodiff_trt.passes.apply_draft_adapter import UP_SUFFIX
from nemodiff_trt.passes.base import PassOptions, PassReport, Refusal
from nemodiff_trt.passes.graph import NODE_VALUE, StepGraph, is_call, weight_name

_LINEAR, _MUL = torch.ops.aten.linear.default, torch.ops.aten.mul.Tensor
_UNSQUEEZE, _CAST = torch.ops.aten.unsqueeze.default, torch.ops.aten._to_copy.default  # noqa: SLF001 - the operator's own name


def gate_adapter_rows(graph: StepGraph, options: PassOptions) -> PassReport:
    """Count: branches of the adapter that got the gate."""
    name = gate_adapter_rows.__name__
    if ADAPTER_ROWS not in graph.inputs:
        return PassReport(name, 0, (Refusal(ADAPTER_ROWS, "no such input"),))
    changed, refusals = 0, []
    gates: dict[object, fx.Node] = {}
    for up in graph.calls(_LINEAR):
        if not str(weight_name(up.args[1])).endswith(UP_SUFFIX):
            continue
        reason = _refusal(up)
        if reason:
            refusals.append(Refusal(up.name, reason))
            continue
        _gate(graph, up, gates)
        changed += 1
    return PassReport(name, changed, tuple(refusals))


def _refusal(up: fx.Node) -> str | None:
    if not is_call(up.args[0], _LINEAR):
        return "already has its gate"
    users = list(up.users)
    if len(users) != 1 or not is_call(users[0], _MUL) or not isinstance(users[0].args[1], float):
        return "its result is not multiplied by the adapter's scale"
    return None


def _gate(graph: StepGraph, up: fx.Node, gates: dict[object, fx.Node]) -> None:
    """Move the scale of one branch into its gate; `gates` holds those made so far, by scale and dtype."""
    scaled, low = next(iter(up.users)), up.args[0]
    assert isinstance(low, fx.Node), "checked by _refusal"
    key = (scaled.args[1], low.meta[NODE_VALUE].dtype)
    if key not in gates:
        rows = graph.inputs[ADAPTER_ROWS]
        first = next(node for node in graph.graph.nodes if node.op == "call_function")
        gate = graph.call(first, _MUL, graph.call(first, _UNSQUEEZE, rows, -1), scaled.args[1])
        gates[key] = gate if key[1] == torch.float32 else graph.call(first, _CAST, gate, dtype=key[1])
    up.update_arg(0, graph.call(up, _MUL, low, gates[key]))
    scaled.replace_all_uses_with(up)
    graph.graph.erase_node(scaled)

"""Prefill answers one row per sequence: gather it before the final norm, so that the vocabulary projection runs on one row.

before: logits [B,S,V] = linear(rms_norm(x, w), W)
after:  logits [B,1,V] = linear(rms_norm(select_position(x, last_index), w), W)     with the new input last_index int64 [B]

The row of the last real token differs per sequence, because prompts of a batch are padded on the right.
"""

from __future__ import annotations

import torch
from torch import fx

import nemodiff_trt.plugins  # noqa: F401 - registers torch.ops.nemodiff
from nemodiff_trt.contract import CACHE_LENGTH, LAST_INDEX, LOGITS
from nemodiff_trt.passes.base import PassOptions, PassReport, Refusal
from nemodiff_trt.passes.graph import NODE_VALUE, StepGraph, is_call

_LINEAR = torch.ops.aten.linear.default
_RMS_NORM = torch.ops.nemodiff.rms_norm.default
_SELECT = torch.ops.nemodiff.select_position.default


def select_last_position(graph: StepGraph, options: PassOptions) -> PassReport:
    """Count: 1 when the row is selected."""
    name = select_last_position.__name__
    if LAST_INDEX in graph.inputs:
        return PassReport(name, 0, (Refusal(LAST_INDEX, "the graph already selects a row"),))
    head = graph.outputs.get(LOGITS)
    norm = head.args[0] if head is not None and is_call(head, _LINEAR) else None
    if not isinstance(norm, fx.Node) or not is_call(norm, _RMS_NORM):
        return PassReport(name, 0, (Refusal(LOGITS, "not a linear layer behind a normalisation"),))
    # Every other reader would silently lose rows.
    others = [user for user in norm.users if user is not head]
    others += [user for user in head.users if user.op != "output"]  # type: ignore[union-attr]
    if others:
        return PassReport(name, 0, (Refusal(LOGITS, f"all rows are also read by {others[0].name}"),))
    x = norm.args[0]
    assert isinstance(x, fx.Node), "a normalisation normalises a tensor"
    lengths = graph.inputs[CACHE_LENGTH].meta[NODE_VALUE]
    last_index = graph.add_input(LAST_INDEX, CACHE_LENGTH, torch.empty_like(lengths))
    selected = graph.call(norm, _SELECT, x, last_index)
    norm.update_arg(0, selected)
    _infer_again(norm, head)  # type: ignore[arg-type]
    return PassReport(name, 1)


def _infer_again(*nodes: fx.Node) -> None:
    """Fake results of `nodes` after the shape of their input changed."""
    for node in nodes:
        node.meta[NODE_VALUE] = node.target(*fx.node.map_arg(node.args, lambda argument: argument.meta[NODE_VALUE]))  # type: ignore[operator]

"""Replace the project's operators by what they mean in plain torch, so that a tracing compiler sees through them and can fuse.

before: nemodiff::rms_norm(x, w, eps)
after:  rms_norm_reference(x, w, eps)              a Python function of aten calls; likewise for every operator of `plugins.OPS`

before: nemodiff::attention(q, k, v, cache_length, H, causal), once per layer
after:  attend_visible(q, k, v, visible, H)        with one visible = visible_slots(q, k, cache_length, causal) for all layers

Operators that the build wants as plugins stay as they are.

nemodiff::masked_attention likewise, with visible_step_slots(k, cache_length, step_mask).

The used length of the cache is known only when a step runs; it becomes the extent of `visible`, so that compiled attention
reads the used slots and not the whole capacity.
"""

from __future__ import annotations

import torch
from torch import fx

from nemodiff_trt.passes.base import PassOptions, PassReport, Refusal
from nemodiff_trt.passes.expand_quadratic import ATTENTIONS
from nemodiff_trt.passes.graph import NODE_FORM, NODE_OPERATOR, NODE_VALUE, StepGraph, operator_name
from nemodiff_trt.plugins import OPS, Form
from nemodiff_trt.plugins.attention import attend_visible, visible_slots
from nemodiff_trt.plugins.masked_attention import visible_step_slots

_MASKED = torch.ops.nemodiff.masked_attention.default
_NUM_ATTENTION_ARGUMENTS = 6
_REFERENCES = {getattr(torch.ops.nemodiff, op.name).default: op.reference for op in OPS}


def decompose_plugins(graph: StepGraph, options: PassOptions) -> PassReport:
    """Count: operators that became plain torch."""
    masks: dict[tuple[object, ...], fx.Node] = {}
    changed, refusals = 0, []
    for node in [node for node in graph.graph.nodes if operator_name(node) is not None]:
        name = operator_name(node)
        if name in options.plugins:
            node.meta[NODE_FORM] = Form.TRITON
            continue
        reason = _refusal(node)
        if reason:
            refusals.append(Refusal(node.name, reason))
            continue
        if node.target in ATTENTIONS:
            _split_attention(graph, node, masks)
        else:
            node.target = _REFERENCES[node.target]
        node.meta[NODE_OPERATOR] = name
        changed += 1
    return PassReport(decompose_plugins.__name__, changed, tuple(refusals))


def _refusal(node: fx.Node) -> str | None:
    if node.target not in _REFERENCES:
        return "the operator has no reference in plugins.OPS"
    if node.target in ATTENTIONS and len(node.args) < _NUM_ATTENTION_ARGUMENTS:
        return "arguments are given by keyword"
    return None


def _split_attention(graph: StepGraph, node: fx.Node, masks: dict[tuple[object, ...], fx.Node]) -> None:
    """Attention behind a mask that it shares with all attentions of the same lengths, direction or step mask, and extents."""
    query, key_cache, value_cache, cache_length = node.args[:4]
    assert isinstance(query, fx.Node), "attention reads tensors"
    assert isinstance(key_cache, fx.Node), "attention reads tensors"
    if node.target == _MASKED:
        rule, num_heads, *scale = node.args[4:]
    else:
        num_heads, rule, *scale = node.args[4:]
    extents = (str(query.meta[NODE_VALUE].shape[1]), str(key_cache.meta[NODE_VALUE].shape[2]))
    key = (cache_length, rule, *extents)
    if key not in masks:
        with graph.graph.inserting_before(node):
            # Without a fake value: its extent is not known before a step runs.
            if node.target == _MASKED:
                masks[key] = graph.graph.call_function(visible_step_slots, (key_cache, cache_length, rule))
            else:
                masks[key] = graph.graph.call_function(visible_slots, (query, key_cache, cache_length, rule))
    node.target = attend_visible
    node.args = (query, key_cache, value_cache, masks[key], num_heads, *scale)

"""Let inputs say which tokens of a step see each other and where they stand, for the role `quadratic`.

before: positions = nemodiff::step_positions(input_ids, cache_length)
        nemodiff::attention(q, k, v, cache_length, H, causal)
after:  positions = unsqueeze(cache_length, -1) + position_offset
        nemodiff::masked_attention(q, k, v, cache_length, step_mask, H)
        with the new inputs position_offset int64 [B,S], step_mask bool [B,S,S] and adapter_rows fp32 [B,S], the last one for
        the pass gate_adapter_rows

One such step verifies a block and drafts the next one for every length at which the block may be accepted.
Reference: quadratic self-speculation, arXiv 2607.05722.
"""

from __future__ import annotations

import torch
from torch import fx

import nemodiff_trt.plugins  # noqa: F401 - registers torch.ops.nemodiff
from nemodiff_trt.contract import ADAPTER_ROWS, CACHE_LENGTH, INPUT_IDS, POSITION_OFFSET, STEP_MASK
from nemodiff_trt.passes.base import PassOptions, PassReport, Refusal
from nemodiff_trt.passes.graph import NODE_VALUE, StepGraph

_ATTENTION, _MASKED = torch.ops.nemodiff.attention.default, torch.ops.nemodiff.masked_attention.default
# Either kind of attention: query, keys, values and lengths come first, a scale may come last in both.
ATTENTIONS = (_ATTENTION, _MASKED)
_POSITIONS = torch.ops.nemodiff.step_positions.default
_ADD, _UNSQUEEZE = torch.ops.aten.add.Tensor, torch.ops.aten.unsqueeze.default
# Tensors and number of heads; a scale may follow the direction.
_NUM_ATTENTION_ARGUMENTS, _CAUSAL_ARGUMENT = 6, 5


def expand_quadratic(graph: StepGraph, options: PassOptions) -> PassReport:
    """Count: attention nodes that got a mask, and 1 for the positions."""
    name, inputs = expand_quadratic.__name__, graph.inputs
    if not options.role.takes_layout:
        return PassReport(name, 0, (Refusal(str(options.role), "the role has a fixed order of tokens"),))
    if STEP_MASK in inputs:
        return PassReport(name, 0, (Refusal(STEP_MASK, "the graph already takes a layout"),))
    missing = [wanted for wanted in (INPUT_IDS, CACHE_LENGTH) if wanted not in inputs]
    if missing:
        return PassReport(name, 0, (Refusal(missing[0], "no such input"),))
    _add_inputs(graph)
    changed, refusals = 0, []
    for node in graph.calls(_POSITIONS):
        _read_offsets(graph, node)
        changed += 1
    for node in graph.calls(_ATTENTION):
        if len(node.args) < _NUM_ATTENTION_ARGUMENTS:
            refusals.append(Refusal(node.name, "arguments are given by keyword"))
            continue
        _mask(graph, node)
        changed += 1
    return PassReport(name, changed, tuple(refusals))


def _add_inputs(graph: StepGraph) -> None:
    ids = graph.inputs[INPUT_IDS].meta[NODE_VALUE]
    batch, step = ids.shape
    graph.add_input(POSITION_OFFSET, CACHE_LENGTH, torch.empty_like(ids))
    graph.add_input(STEP_MASK, POSITION_OFFSET, ids.new_empty((batch, step, step), dtype=torch.bool))
    graph.add_input(ADAPTER_ROWS, STEP_MASK, ids.new_empty((batch, step), dtype=torch.float32))


def _read_offsets(graph: StepGraph, node: fx.Node) -> None:
    inputs = graph.inputs
    first = graph.call(node, _UNSQUEEZE, inputs[CACHE_LENGTH], -1)
    node.replace_all_uses_with(graph.call(node, _ADD, first, inputs[POSITION_OFFSET]))
    graph.graph.erase_node(node)


def _mask(graph: StepGraph, node: fx.Node) -> None:
    *tensors, num_heads = node.args[:_CAUSAL_ARGUMENT]
    scale = node.args[_NUM_ATTENTION_ARGUMENTS:]
    masked = graph.call(node, _MASKED, *tensors, graph.inputs[STEP_MASK], num_heads, *scale)
    node.replace_all_uses_with(masked)
    graph.graph.erase_node(node)

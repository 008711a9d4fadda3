"""Make the output projections of a role that drafts those of the adapter.

before:         y = linear(attention, W)
after, low_rank: y = linear(attention, W) + scale * linear(linear(attention, A), B)
after, merged:   y = linear(attention, W')      with W' = W + scale * B @ A, stored beside W; low_rank in a quadratic step

Reference: LoRA, arXiv 2106.09685; the drafter of arXiv 2607.05722 adapts o_proj only.
"""

from __future__ import annotations

import torch
from torch import fx

import nemodiff_trt.plugins  # noqa: F401 - registers torch.ops.nemodiff
from nemodiff_trt.bundle import AdapterFacts, Combine, WeightLayout
from nemodiff_trt.passes.base import PassOptions, PassReport, Refusal
from nemodiff_trt.passes.graph import NODE_VALUE, StepGraph, is_call, weight_name

_LINEAR, _ADD, _MUL = torch.ops.aten.linear.default, torch.ops.aten.add.Tensor, torch.ops.aten.mul.Tensor
_ATTENTION = torch.ops.nemodiff.attention.default
_BASE_SUFFIX = ".o_proj.weight"
MERGED_SUFFIX = ".o_proj_draft.weight"
# Of the second matrix of a branch, B.
UP_SUFFIX = ".adapter.lora_B.weight"


def apply_draft_adapter(graph: StepGraph, options: PassOptions) -> PassReport:
    """Count: output projections that got the adapter."""
    changed, refusals = 0, []
    for node in graph.calls(_LINEAR):
        if not is_call(node.args[0], _ATTENTION):
            continue
        reason = _refusal(graph, node, options)
        if reason:
            refusals.append(Refusal(node.name, reason))
            continue
        if options.merges_adapter:
            _merge(graph, node)
        else:
            _add_branch(graph, node, options.adapter)
        changed += 1
    return PassReport(apply_draft_adapter.__name__, changed, tuple(refusals))


def _refusal(graph: StepGraph, node: fx.Node, options: PassOptions) -> str | None:
    name = weight_name(node.args[1])
    if not options.role.uses_adapter:
        return f"role {options.role} runs the base weights"
    if not options.drafts_with_adapter:
        return "no adapter to apply"
    if name is None or not name.endswith(_BASE_SUFFIX):
        return "not a plain output projection" if name is None or not name.endswith(MERGED_SUFFIX) else "already merged"
    if adapter_sources(name)[0] in graph.weights:
        return "already has its low-rank branch"
    return None


def adapter_sources(base: str) -> tuple[str, str]:
    """Decoder names of A [r,H*D] and B [hidden,r] that belong to the output projection `base`."""
    stem = base.removesuffix(_BASE_SUFFIX)
    return f"{stem}.adapter.lora_A.weight", f"{stem}{UP_SUFFIX}"


def _merge(graph: StepGraph, node: fx.Node) -> None:
    base = node.args[1]
    name = str(base.target)  # type: ignore[union-attr]
    layout = WeightLayout((name, *adapter_sources(name)), False, graph.weights[name].dtype, Combine.MERGE_ADAPTER)
    merged = graph.add_weight(name.removesuffix(_BASE_SUFFIX) + MERGED_SUFFIX, layout, base.meta[NODE_VALUE])  # type: ignore[union-attr]
    node.update_arg(1, merged)


def _add_branch(graph: StepGraph, node: fx.Node, adapter: AdapterFacts | None) -> None:
    assert adapter is not None, "checked by _refusal"
    mixed, base = node.args[0], str(node.args[1].target)  # type: ignore[union-attr]
    value, dtype = node.args[1].meta[NODE_VALUE], graph.weights[base].dtype  # type: ignore[union-attr]
    shapes = ((adapter.rank, value.shape[1]), (value.shape[0], adapter.rank))
    down, up = (
        graph.add_weight(name, WeightLayout((name,), False, dtype), value.new_empty(shape))
        for name, shape in zip(adapter_sources(base), shapes, strict=True)
    )
    users = list(node.users)
    after = node.next
    low = graph.call(after, _LINEAR, mixed, down)
    branch = graph.call(after, _MUL, graph.call(after, _LINEAR, low, up), adapter.scale)
    total = graph.call(after, _ADD, node, branch)
    for user in users:
        user.replace_input_with(node, total)

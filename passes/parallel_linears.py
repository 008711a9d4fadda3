"""Join linears that read the same value into one, shared by `fuse_qkv` and `fuse_gate_up`."""

from __future__ import annotations

import torch
from torch import fx

from nemodiff_trt.bundle import WeightLayout
from nemodiff_trt.passes.base import LINEAR, PassReport, Refusal, StepGraph, weight_name

SLICE = torch.ops.aten.slice.Tensor


def fuse_parallel_linears(graph: StepGraph, name: str, parts: tuple[str, ...], fused: str) -> PassReport:
    """Replace `linear(x, M.<part>.weight)` for all parts of one module M by slices of `linear(x, M.<fused>.weight)`.

    Fires once per module. Refuses modules whose parts read different values, have a bias, or share their weight.
    """
    modules: dict[str, dict[str, fx.Node]] = {}
    for node in graph.calls(LINEAR):
        module, _, part = (weight_name(node.args[1]) or "").removesuffix(".weight").rpartition(".")
        if part in parts:
            modules.setdefault(module, {})[part] = node
    num_fired, refusals = 0, []
    for module, found in modules.items():
        reason = _reason_to_refuse(found, parts)
        if reason:
            refusals.append(Refusal(module, reason))
            continue
        _fuse(graph, f"{module}.{fused}.weight", [found[part] for part in parts])
        num_fired += 1
    return PassReport(name, num_fired, tuple(refusals))


def _reason_to_refuse(found: dict[str, fx.Node], parts: tuple[str, ...]) -> str:
    missing = [part for part in parts if part not in found]
    if missing:
        return f"no linear for {', '.join(missing)}"
    nodes = [found[part] for part in parts]
    if len({node.args[0] for node in nodes}) != 1:
        return "the parts read different values"
    if any(len(node.args) > 2 and node.args[2] is not None for node in nodes):
        return "a part has a bias"
    if any(len(node.args[1].users) != 1 for node in nodes):  # type: ignore[union-attr]
        return "a weight is used elsewhere too"
    return ""


def _fuse(graph: StepGraph, name: str, nodes: list[fx.Node]) -> None:
    sources = [str(weight_name(node.args[1])) for node in nodes]
    weights = [graph.weight(source) for source in sources]
    graph.derived[name] = WeightLayout(tuple(sources), transposed=False, dtype="")
    first = min(nodes, key=list(graph.graph.nodes).index)
    with graph.graph.inserting_before(first):
        weight = graph.add_weight(name, torch.cat(weights))
        whole = graph.graph.call_function(LINEAR, (first.args[0], weight))
        start = 0
        for node, part in zip(nodes, weights, strict=True):
            piece = graph.graph.call_function(SLICE, (whole, -1, start, start + part.shape[0]))
            node.replace_all_uses_with(piece)
            start += part.shape[0]
    for node in nodes:
        graph.graph.erase_node(node)

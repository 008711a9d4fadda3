"""One projection for queries, keys and values.

before: attention(rotary(linear(x, Wq)), cache_update(_, rotary(linear(x, Wk))), cache_update(_, linear(x, Wv)))
after:  the same over split(linear(x, [Wq; Wk; Wv]))
"""

from __future__ import annotations

import torch
from torch import fx

import nemodiff_trt.plugins  # noqa: F401 - registers torch.ops.nemodiff
from nemodiff_trt.passes.base import PassOptions, PassReport, Refusal
from nemodiff_trt.passes.expand_quadratic import ATTENTIONS
from nemodiff_trt.passes.fuse_projections import LINEAR, fuse, why_not
from nemodiff_trt.passes.graph import StepGraph, is_call

_ROTARY = torch.ops.nemodiff.rotary.default
_CACHE_UPDATE = torch.ops.nemodiff.cache_update.default


def fuse_qkv(graph: StepGraph, options: PassOptions) -> PassReport:
    """Count: attention nodes whose three projections became one."""
    fused, refusals = 0, []
    for attention in graph.calls(*ATTENTIONS):
        query, key_cache, value_cache = attention.args[:3]
        key = _argument(key_cache, _CACHE_UPDATE, 1)
        projections = (_argument(query, _ROTARY, 0), _argument(key, _ROTARY, 0), _argument(value_cache, _CACHE_UPDATE, 1))
        reason = why_not(graph, projections)
        if reason:
            refusals.append(Refusal(attention.name, reason))
            continue
        linears = tuple(node for node in projections if is_call(node, LINEAR) and isinstance(node, fx.Node))
        name = str(linears[0].args[1].target)  # type: ignore[union-attr]
        fuse(graph, linears, name.replace("q_proj", "qkv_proj"))
        fused += 1
    return PassReport(fuse_qkv.__name__, fused, tuple(refusals))


def _argument(node: object, target: object, index: int) -> object:
    """Argument `index` of `node` when it calls `target`, otherwise None."""
    return node.args[index] if isinstance(node, fx.Node) and is_call(node, target) else None

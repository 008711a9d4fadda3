"""Scale the query instead of the scores, for targets whose attention layer applies no scale of its own.

before: attention(q, k, v, cache_length, H, causal)
after:  attention(q * D**-0.5, k, v, cache_length, H, causal, scale=1.0)      and masked_attention likewise

Reference: TensorRT `IAttention`, which computes softmax(Q K^T) V.
"""

from __future__ import annotations

import torch
from torch import fx

import nemodiff_trt.plugins  # noqa: F401 - registers torch.ops.nemodiff
from nemodiff_trt.passes.base import PassOptions, PassReport, Refusal
from nemodiff_trt.passes.expand_quadratic import ATTENTIONS
from nemodiff_trt.passes.graph import NODE_VALUE, StepGraph

_MUL = torch.ops.aten.mul.Tensor
# Position of `scale` among the arguments of either.
SCALE_ARGUMENT = 6


def scale_queries(graph: StepGraph, options: PassOptions) -> PassReport:
    """Count: attention nodes whose query is scaled beforehand."""
    scaled, refusals = 0, []
    for node in graph.calls(*ATTENTIONS):
        if len(node.args) > SCALE_ARGUMENT:
            refusals.append(Refusal(node.name, f"has the scale {node.args[SCALE_ARGUMENT]} already"))
            continue
        query, key_cache = node.args[:2]
        assert isinstance(key_cache, fx.Node), "attention reads a cache"
        factor = key_cache.meta[NODE_VALUE].shape[-1] ** -0.5
        node.args = (graph.call(node, _MUL, query, factor), *node.args[1:], 1.0)
        scaled += 1
    return PassReport(scale_queries.__name__, scaled, tuple(refusals))

"""Write new keys and values into the cache inputs themselves.

before: present = nemodiff::cache_update(past, new, cache_length)      a copy of the whole cache, then a write
after:  present = write_cache(past, new, cache_length)                 a write into `past`, which `present` then is

For targets that compile plain torch: their engine may mutate an input but cannot be told to bind an output to it. ONNX Runtime
and TensorRT bind one buffer to both sides instead (`alias_of` in the step contract).
"""

from __future__ import annotations

import torch
from torch import fx

import nemodiff_trt.plugins  # noqa: F401 - registers torch.ops.nemodiff
from nemodiff_trt.passes.base import PassOptions, PassReport, Refusal
from nemodiff_trt.passes.graph import NODE_OPERATOR, StepGraph, operator_name
from nemodiff_trt.plugins.cache_update import write_cache

_CACHE_UPDATE = torch.ops.nemodiff.cache_update.default


def update_cache_in_place(graph: StepGraph, options: PassOptions) -> PassReport:
    """Count: updates that became writes into an input."""
    changed, refusals = 0, []
    for node in graph.calls(_CACHE_UPDATE):
        reason = _refusal(node)
        if reason:
            refusals.append(Refusal(node.name, reason))
            continue
        node.meta[NODE_OPERATOR] = operator_name(node)
        node.target = write_cache
        changed += 1
    return PassReport(update_cache_in_place.__name__, changed, tuple(refusals))


def _refusal(node: fx.Node) -> str | None:
    cache = node.args[0]
    if not isinstance(cache, fx.Node) or cache.op != "placeholder":
        return "its cache is not an input of the step"
    others = [user for user in cache.users if user is not node]
    if others:
        return f"the cache as it was is also read by {others[0].name}"
    return None

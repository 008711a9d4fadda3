"""Make every layer's scaled query an output of the step, which keeps TensorRT from copying the caches.

before: attention(q * s, k, v, ...)
after:  the same, and q * s is the scratch output scaled_query_l

With more than one token per step and a query that is produced inside the network, the compiler writes out keys and values
expanded from G to H heads over the whole capacity, in every layer and step. A query that must exist in memory is a boundary it
does not fuse across; attention then reads the caches in place. Found by reading compiled plans (docs/plan_audit.md).
"""

from __future__ import annotations

import torch
from torch import fx

import nemodiff_trt.plugins  # noqa: F401 - registers torch.ops.nemodiff
from nemodiff_trt.contract import scaled_query
from nemodiff_trt.passes.base import PassOptions, PassReport, Refusal
from nemodiff_trt.passes.expand_quadratic import ATTENTIONS
from nemodiff_trt.passes.graph import StepGraph, is_call
from nemodiff_trt.passes.scale_queries import SCALE_ARGUMENT

_MUL = torch.ops.aten.mul.Tensor


def expose_queries(graph: StepGraph, options: PassOptions) -> PassReport:
    """Count: queries that became scratch outputs."""
    outputs, added, refusals = graph.outputs, [], []
    for layer, node in enumerate(graph.calls(*ATTENTIONS)):
        name, query = scaled_query(layer), node.args[0]
        if name in outputs:
            refusals.append(Refusal(node.name, f"{name} is an output already"))
        elif len(node.args) <= SCALE_ARGUMENT or not is_call(query, _MUL):
            refusals.append(
                Refusal(node.name, "its query is not scaled yet, so another tensor would enter the attention layer")
            )
        else:
            assert isinstance(query, fx.Node), "checked by is_call"
            outputs[name] = query
            added.append(name)
    graph.set_outputs(outputs)
    graph.scratch = (*graph.scratch, *added)
    return PassReport(expose_queries.__name__, len(added), tuple(refusals))

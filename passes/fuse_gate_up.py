"""One projection for both halves of the gated feed-forward.

before: silu(linear(x, Wgate)) * linear(x, Wup)
after:  silu(gate) * up     with gate, up = split(linear(x, [Wgate; Wup]))
"""

from __future__ import annotations

import torch
from torch import fx

from nemodiff_trt.passes.base import PassOptions, PassReport, Refusal
from nemodiff_trt.passes.fuse_projections import fuse, why_not
from nemodiff_trt.passes.graph import StepGraph, is_call

_MUL, _SILU = torch.ops.aten.mul.Tensor, torch.ops.aten.silu.default


def fuse_gate_up(graph: StepGraph, options: PassOptions) -> PassReport:
    """Count: gated products whose two projections became one."""
    fused, refusals = 0, []
    for product in graph.calls(_MUL):
        activated, up = product.args
        if not isinstance(activated, fx.Node) or not is_call(activated, _SILU):
            continue
        projections = (activated.args[0], up)
        reason = why_not(graph, projections)
        if reason:
            refusals.append(Refusal(product.name, reason))
            continue
        linears = tuple(node for node in projections if isinstance(node, fx.Node))
        name = str(linears[0].args[1].target)  # type: ignore[union-attr]
        fuse(graph, linears, name.replace("gate_proj", "gate_up_proj"))
        fused += 1
    return PassReport(fuse_gate_up.__name__, fused, tuple(refusals))

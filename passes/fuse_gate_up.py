"""One matrix for both halves of the gated feed-forward.

Before: silu(linear(x, Wgate)) * linear(x, Wup)
After:  both = linear(x, [Wgate; Wup]); silu(first half of both) * second half of both
"""

from __future__ import annotations

from dataclasses import dataclass

from nemodiff_trt.passes.base import PassReport, StepGraph
from nemodiff_trt.passes.parallel_linears import fuse_parallel_linears


@dataclass(frozen=True, slots=True)
class FuseGateUp:
    """Fires once per layer."""

    name: str = "fuse_gate_up"

    def __call__(self, graph: StepGraph) -> PassReport:
        return fuse_parallel_linears(graph, self.name, ("gate_proj", "up_proj"), "gate_up_proj")

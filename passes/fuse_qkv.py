"""One matrix for queries, keys and values: fewer, larger multiplications.

Before: q = linear(x, Wq); k = linear(x, Wk); v = linear(x, Wv)
After:  qkv = linear(x, [Wq; Wk; Wv]); q, k, v = slices of qkv
"""

from __future__ import annotations

from dataclasses import dataclass

from nemodiff_trt.passes.base import PassReport, StepGraph
from nemodiff_trt.passes.parallel_linears import fuse_parallel_linears


@dataclass(frozen=True, slots=True)
class FuseQKV:
    """Fires once per layer."""

    name: str = "fuse_qkv"

    def __call__(self, graph: StepGraph) -> PassReport:
        return fuse_parallel_linears(graph, self.name, ("q_proj", "k_proj", "v_proj"), "qkv_proj")

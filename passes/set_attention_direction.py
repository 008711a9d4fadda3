"""Make every attention of a step causal or bidirectional.

Before: attention(q, k, v, length, num_heads, causal=True)
After:  attention(q, k, v, length, num_heads, causal=False)

The captured graph is causal; `denoise` and `draft` are the same graph read in both directions.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from nemodiff_trt.passes.base import PassReport, StepGraph

CAUSAL_ARGUMENT = 5


@dataclass(frozen=True, slots=True)
class SetAttentionDirection:
    """Fires once per attention whose direction differs from `causal`."""

    causal: bool
    name: str = "set_attention_direction"

    def __call__(self, graph: StepGraph) -> PassReport:
        num_fired = 0
        for node in graph.calls(torch.ops.nemodiff.attention.default):
            if node.args[CAUSAL_ARGUMENT] != self.causal:
                node.update_arg(CAUSAL_ARGUMENT, self.causal)
                num_fired += 1
        return PassReport(self.name, num_fired)

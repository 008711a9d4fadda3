"""Give every attention of a step the direction of its role.

before: nemodiff::attention(q, k, v, cache_length, H, causal=True)
after:  nemodiff::attention(q, k, v, cache_length, H, causal=False)     in denoise and draft steps

Reference: tri-mode decoding, arXiv 2607.05722: a diffusion step lets every token of the block see the whole block.
"""

from __future__ import annotations

import torch

import nemodiff_trt.plugins  # noqa: F401 - registers torch.ops.nemodiff
from nemodiff_trt.passes.base import PassOptions, PassReport, Refusal
from nemodiff_trt.passes.graph import StepGraph

_ATTENTION = torch.ops.nemodiff.attention.default
_CAUSAL_ARGUMENT = 5


def set_attention_direction(graph: StepGraph, options: PassOptions) -> PassReport:
    """Count: attention nodes whose direction changed."""
    causal, changed, refusals = options.role.is_causal, 0, []
    for node in graph.calls(_ATTENTION):
        if node.args[_CAUSAL_ARGUMENT] is causal:
            refusals.append(Refusal(node.name, f"already has causal={causal}"))
            continue
        node.update_arg(_CAUSAL_ARGUMENT, causal)
        changed += 1
    return PassReport(set_attention_direction.__name__, changed, tuple(refusals))

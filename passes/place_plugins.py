"""Mark the operators that the target runs as plugins: compiled kernels inside the engine in place of native layers.

before: nemodiff::decision_head(logits, mask_token_id)
after:  the same node, whose lowering adds the operator's plugin form
"""

from __future__ import annotations

from nemodiff_trt.passes.base import PassOptions, PassReport
from nemodiff_trt.passes.graph import NODE_FORM, StepGraph, operator_name
from nemodiff_trt.plugins import Form


def place_plugins(graph: StepGraph, options: PassOptions) -> PassReport:
    """Count: operators that become plugins."""
    chosen = [node for node in graph.graph.nodes if operator_name(node) in options.plugins and NODE_FORM not in node.meta]
    for node in chosen:
        node.meta[NODE_FORM] = Form.PLUGIN
    return PassReport(place_plugins.__name__, len(chosen))

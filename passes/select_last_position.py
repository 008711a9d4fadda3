"""Run the final norm and the head of a prefill on one position per sequence.

Before: x -> rms_norm(final) -> linear(head) -> logits [B,S,V]
After:  x -> select_position(last_index) -> rms_norm(final) -> linear(head) -> logits [B,1,V]
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from nemodiff_trt.contract import CACHE_LENGTH, LAST_INDEX, LOGITS
from nemodiff_trt.passes.base import LINEAR, PassReport, Refusal, StepGraph


@dataclass(frozen=True, slots=True)
class SelectLastPosition:
    """Fires once, on the norm that feeds the logits."""

    name: str = "select_last_position"

    def __call__(self, graph: StepGraph) -> PassReport:
        if LAST_INDEX in graph.placeholders():
            return PassReport(self.name, 0, (Refusal(LAST_INDEX, "the position is already selected"),))
        if LOGITS not in graph.output_names:
            return PassReport(self.name, 0, (Refusal("output", "the graph returns no logits"),))
        logits = graph.output_node.args[0][graph.output_names.index(LOGITS)]
        norm = logits.args[0] if logits.target is LINEAR else None
        if norm is None or norm.target is not torch.ops.nemodiff.rms_norm.default or len(norm.users) != 1:
            return PassReport(self.name, 0, (Refusal(logits.name, "logits do not come from rms_norm and linear alone"),))
        with graph.graph.inserting_after(graph.placeholders()[CACHE_LENGTH]):
            last_index = graph.graph.placeholder(LAST_INDEX)
        with graph.graph.inserting_before(norm):
            row = graph.graph.call_function(torch.ops.nemodiff.select_position.default, (norm.args[0], last_index))
        norm.update_arg(0, row)
        return PassReport(self.name, 1)

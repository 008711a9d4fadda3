"""Decide on the device: return a token and its probability per row in place of logits.

Before: ... -> logits
After:  ... -> logits -> decision_head(mask_token_id) -> token, confidence [, logits]
"""

from __future__ import annotations

import operator
from dataclasses import dataclass

import torch

from nemodiff_trt.contract import CONFIDENCE, LOGITS, TOKEN
from nemodiff_trt.passes.base import PassReport, Refusal, StepGraph


@dataclass(frozen=True, slots=True)
class AttachDecisionHead:
    """Fires once. `keep_logits` leaves the logits among the outputs, for sampling."""

    mask_token_id: int
    keep_logits: bool = False
    name: str = "attach_decision_head"

    def __call__(self, graph: StepGraph) -> PassReport:
        if TOKEN in graph.output_names:
            return PassReport(self.name, 0, (Refusal(TOKEN, "the graph already decides"),))
        if LOGITS not in graph.output_names:
            return PassReport(self.name, 0, (Refusal("output", "the graph returns no logits"),))
        output, place = graph.output_node, graph.output_names.index(LOGITS)
        values = list(output.args[0])
        with graph.graph.inserting_before(output):
            head = graph.graph.call_function(torch.ops.nemodiff.decision_head.default, (values[place], self.mask_token_id))
            decided = [graph.graph.call_function(operator.getitem, (head, index)) for index in (0, 1)]
        kept = [values[place]] if self.keep_logits else []
        values[place : place + 1] = [*decided, *kept]
        names = list(graph.output_names)
        names[place : place + 1] = [TOKEN, CONFIDENCE, *([LOGITS] if self.keep_logits else [])]
        output.update_arg(0, tuple(values))
        graph.output_names = tuple(names)
        return PassReport(self.name, 1)

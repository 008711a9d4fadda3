"""Let the engine decide: which token, and how sure. Only two numbers per row leave it instead of V.

before: outputs logits [B,S,V], ...
after:  outputs token int64 [B,S], confidence fp32 [B,S], ...     (and logits fp32 where the build keeps them for sampling)
"""

from __future__ import annotations

import torch

import nemodiff_trt.plugins  # noqa: F401 - registers torch.ops.nemodiff
from nemodiff_trt.contract import CONFIDENCE, LOGITS, TOKEN
from nemodiff_trt.passes.base import PassOptions, PassReport, Refusal
from nemodiff_trt.passes.graph import NODE_VALUE, StepGraph

_DECISION_HEAD = torch.ops.nemodiff.decision_head.default
_CAST = torch.ops.aten._to_copy.default  # noqa: SLF001 - the operator's own name


def attach_decision_head(graph: StepGraph, options: PassOptions) -> PassReport:
    """Count: 1 when the head is attached."""
    name, outputs = attach_decision_head.__name__, graph.outputs
    if TOKEN in outputs:
        return PassReport(name, 0, (Refusal(TOKEN, "the graph already decides"),))
    if LOGITS not in outputs:
        return PassReport(name, 0, (Refusal(LOGITS, "no such output"),))
    logits = outputs.pop(LOGITS)
    decision = graph.call(logits.next, _DECISION_HEAD, logits, options.model.mask_token_id)
    token, confidence = graph.pieces(decision)
    decided = {TOKEN: token, CONFIDENCE: confidence}
    if options.keep_logits:
        is_wide = logits.meta[NODE_VALUE].dtype == torch.float32
        decided[LOGITS] = logits if is_wide else graph.call(confidence.next, _CAST, logits, dtype=torch.float32)
    graph.set_outputs({**decided, **outputs})
    return PassReport(name, 1)

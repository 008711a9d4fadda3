"""Decide how every weight of the graph is stored; the graph itself then refers to weights by name only.

Before: get_attr nodes with values
After:  the same nodes, each with a `WeightLayout`: sources, dtype, and whether the stored matrix is [in,out]

Linear weights are stored [in,out] where the target multiplies from the right (ONNX MatMul): a transpose in the graph would be a
copy per step, or per session.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from nemodiff_trt.bundle import Combine, WeightLayout
from nemodiff_trt.passes.base import LINEAR, PassReport, Refusal, StepGraph, weight_name

ROTARY_TABLES = ("query_cos", "query_sin", "key_cos", "key_sin")


@dataclass(frozen=True, slots=True)
class ExternalizeWeights:
    """Fires once per weight without a layout."""

    dtype: str
    transpose_linears: bool
    name: str = "externalize_weights"

    def __call__(self, graph: StepGraph) -> PassReport:
        multiplied = {weight_name(node.args[1]) for node in graph.calls(LINEAR)}
        num_fired, refusals = 0, []
        for node in graph.graph.nodes:
            name = weight_name(node)
            if name is None or name in graph.layouts:
                continue
            is_linear = name in multiplied
            if is_linear and any(user.target is not LINEAR for user in node.users):
                refusals.append(Refusal(name, "the weight is multiplied and also used otherwise"))
                continue
            graph.layouts[name] = replace(self._source(graph, name), transposed=is_linear and self.transpose_linears)
            num_fired += 1
        return PassReport(self.name, num_fired, tuple(refusals))

    def _source(self, graph: StepGraph, name: str) -> WeightLayout:
        if name in graph.derived:
            return replace(graph.derived[name], dtype=self.dtype)
        if name in ROTARY_TABLES:
            return WeightLayout((), transposed=False, dtype=self.dtype, combine=Combine.ROTARY_TABLE)
        return WeightLayout((name,), transposed=False, dtype=self.dtype)

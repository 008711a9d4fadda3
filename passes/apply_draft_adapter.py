"""Add the draft adapter to every output projection (PEFT LoRA, arXiv 2106.09685).

Before:          y = linear(x, Wo)
After, low_rank: y = linear(x, Wo) + linear(linear(x, A), B) * scale
After, merged:   y = linear(x, Wo + scale * B A), a second matrix beside the shared Wo
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import fx

from nemodiff_trt.bundle import Combine, WeightLayout
from nemodiff_trt.options import AdapterForm
from nemodiff_trt.passes.base import LINEAR, PassReport, Refusal, StepGraph, weight_name

SUFFIX = ".o_proj.weight"


@dataclass(frozen=True, slots=True)
class ApplyDraftAdapter:
    """Fires once per layer. `scale` is alpha / rank."""

    form: AdapterForm
    scale: float
    name: str = "apply_draft_adapter"

    def __call__(self, graph: StepGraph) -> PassReport:
        num_fired, refusals = 0, []
        for node in graph.calls(LINEAR):
            base = weight_name(node.args[1]) or ""
            if not base.endswith(SUFFIX):
                continue
            module = base.removesuffix(SUFFIX)
            sources = tuple(f"{module}.adapter.lora_{part}.weight" for part in ("A", "B"))
            if any(user.target is torch.ops.aten.add.Tensor and user.meta.get("adapter") for user in node.users):
                refusals.append(Refusal(module, "the adapter is already there"))
            elif any(source not in graph.parameters for source in sources):
                refusals.append(Refusal(module, "the decoder has no adapter here"))
            else:
                (self._merge if self.form is AdapterForm.MERGED else self._branch)(graph, node, (base, *sources))
                num_fired += 1
        return PassReport(self.name, num_fired, tuple(refusals))

    def _branch(self, graph: StepGraph, node: fx.Node, names: tuple[str, ...]) -> None:
        _, down, up = names
        with graph.graph.inserting_after(node):
            total = graph.graph.call_function(torch.ops.aten.add.Tensor, (node, node))
        total.meta["adapter"] = True
        with graph.graph.inserting_before(total):
            narrow = graph.graph.call_function(LINEAR, (node.args[0], graph.add_weight(down, graph.parameters[down])))
            wide = graph.graph.call_function(LINEAR, (narrow, graph.add_weight(up, graph.parameters[up])))
            branch = graph.graph.call_function(torch.ops.aten.mul.Tensor, (wide, self.scale))
        node.replace_all_uses_with(total)
        total.args = (node, branch)

    def _merge(self, graph: StepGraph, node: fx.Node, names: tuple[str, ...]) -> None:
        base, down, up = (graph.parameters[name] for name in names)
        merged = names[0].replace(SUFFIX, ".draft_o_proj.weight")
        graph.derived[merged] = WeightLayout(names, transposed=False, dtype="", combine=Combine.MERGE_ADAPTER)
        with graph.graph.inserting_before(node):
            node.update_arg(1, graph.add_weight(merged, base + self.scale * (up @ down)))

"""What a pass is, what it reports, and how a pipeline holds it to its word."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from nemodiff_trt.bundle import AdapterFacts
from nemodiff_trt.config import ModelConfig
from nemodiff_trt.errors import PassError
from nemodiff_trt.options import AdapterForm
from nemodiff_trt.passes.graph import StepGraph
from nemodiff_trt.quantization.recipe import Recipe
from nemodiff_trt.vocabulary import Precision, Role


@dataclass(frozen=True, slots=True, kw_only=True)
class PassOptions:
    """What passes may know of the build.

    `precision` is that of activations and cache. `adapter` is None when the checkpoint has none; positions of a step are below
    `cache_capacity`. `plugins` are names of operators that the target runs as they are, by kernels of the project. `recipe`
    says which linear layers of the role are quantised, None for none of them.
    """

    role: Role
    model: ModelConfig
    cache_capacity: int
    precision: Precision = Precision.FP32
    adapter: AdapterFacts | None = None
    adapter_form: AdapterForm = AdapterForm.LOW_RANK
    keep_logits: bool = False
    recipe: Recipe | None = None
    plugins: frozenset[str] = frozenset()

    @property
    def drafts_with_adapter(self) -> bool:
        return self.role.uses_adapter and self.adapter is not None and self.adapter_form is not AdapterForm.NONE

    @property
    def merges_adapter(self) -> bool:
        """A role whose tokens differ in whether the adapter applies needs the branch: one matrix serves all tokens or none."""
        return self.drafts_with_adapter and self.adapter_form is AdapterForm.MERGED and not self.role.takes_layout

    @property
    def has_adapter_branch(self) -> bool:
        """Whether the adapter's two matrices are layers of their own."""
        return self.drafts_with_adapter and not self.merges_adapter


@dataclass(frozen=True, slots=True)
class Refusal:
    """A place a pass looked at and left alone."""

    node: str
    reason: str


@dataclass(frozen=True, slots=True)
class PassReport:
    """How often a pass fired, and where and why it did not."""

    name: str
    count: int
    refusals: tuple[Refusal, ...] = ()


class Pass(Protocol):
    """A rewrite of a graph in place, named after its result."""

    @property
    def __name__(self) -> str: ...

    def __call__(self, graph: StepGraph, options: PassOptions) -> PassReport: ...


@dataclass(frozen=True, slots=True)
class Stage:
    """A pass of a pipeline and the number of times it has to fire."""

    run: Pass
    expected: Callable[[PassOptions], int]


def run_pipeline(graph: StepGraph, stages: tuple[Stage, ...], options: PassOptions) -> tuple[PassReport, ...]:
    """Apply `stages` to `graph` in order, removing dead code after each.

    Raises:
        PassError: a pass fired another number of times than its stage expects; the message gives the reasons it reported.
    """
    reports = []
    for stage in stages:
        report = stage.run(graph, options)
        graph.tidy()
        expected = stage.expected(options)
        if report.count != expected:
            reasons = "; ".join(f"{refusal.node}: {refusal.reason}" for refusal in report.refusals) or "no candidate was found"
            raise PassError(
                f"{report.name} fired {report.count} times for role {options.role}, expected {expected} ({reasons})"
            )
        reports.append(report)
    return tuple(reports)

"""Bytes a step moves: what every launch reads and writes, and what no plan could avoid.

Each launch is charged each operand once, as if nothing survived in a cache of the device from one launch to the next, and as
if no kernel read anything twice. Workspace is left out. Three operands are charged by what is touched instead of by their
size: rows gathered from a table, rows scattered into a cache in place, and a cache read by fused attention with lengths.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from nemodiff_trt.plan_audit.facts import AuditPoint, StepFacts
from nemodiff_trt.plan_audit.launches import Launch, LaunchKind
from nemodiff_trt.plan_audit.lineage import cache_copies, inputs_behind, is_weight_like, weight_copies
from nemodiff_trt.plan_audit.program import Program, stored_name
from nemodiff_trt.plan_audit.report import CopyBytes, Offender, StepBytes
from nemodiff_trt.plan_audit.tensors import Operand, OperandKind

LENGTHS_INPUT = "cache_length"
_INTEGERS = ("int32", "int64")
_MAX_OFFENDERS = 8


@dataclass(frozen=True, slots=True)
class Step:
    """One program at one audit point, resolved."""

    program: Program
    facts: StepFacts
    point: AuditPoint
    launches: tuple[Launch, ...]
    behind: Mapping[str, frozenset[str]] = field(default_factory=dict)

    @classmethod
    def of(cls, program: Program, facts: StepFacts, point: AuditPoint, launches: tuple[Launch, ...]) -> Step:
        return cls(program, facts, point, launches, inputs_behind(program, launches))

    @property
    def num_tokens(self) -> int:
        return self.point.batch * self.point.step

    def knows_lengths(self, launch: Launch) -> bool:
        """Whether an integer operand of an attention kernel depends on the cache lengths."""
        return any(
            LENGTHS_INPUT in self.behind.get(operand.base, ()) or stored_name(operand.base) == LENGTHS_INPUT
            for operand in launch.inputs
            if operand.dtype in _INTEGERS and operand.kind is not OperandKind.HOST
        )


def needed_bytes(facts: StepFacts, point: AuditPoint) -> StepBytes:
    """Weights once, keys and values of all used tokens, those of the step written; activations as an estimate.

    The estimate: every matrix multiplication reads its input and writes its output once, in the cache's dtype.
    """
    tokens, caches = point.batch * point.step, 2 * facts.num_layers * facts.cache.token_bytes()
    linear = [weight.shape for weight in facts.weights.values() if len(weight.shape) == 2 and not weight.by_rows]
    return StepBytes(
        weights=sum(weight.step_bytes(tokens) for weight in facts.weights.values()),
        cache_read=caches * point.batch * point.used_tokens(facts.cache.capacity),
        cache_written=caches * tokens,
        activations=tokens * facts.cache.item_bytes * sum(sum(shape) for shape in linear),
    )


def launch_bytes(step: Step, launch: Launch) -> StepBytes:
    """Bytes one launch reads and writes."""
    total = StepBytes()
    for operand in launch.reads:
        total = total.plus(_read(step, launch, operand))
    for operand in launch.writes:
        total = total.plus(_written(step, launch, operand))
    return total


def _read(step: Step, launch: Launch, operand: Operand) -> StepBytes:
    if operand.kind is OperandKind.CACHE:
        return StepBytes(cache_read=_cache_read(step, launch, operand))
    if operand.kind is OperandKind.WEIGHT:
        weight = step.facts.weights[stored_name(operand.base)]
        if weight.by_rows and launch.kind is LaunchKind.GENERATED and launch.may_hold("Gath"):
            return StepBytes(weights=weight.step_bytes(step.num_tokens))
        return StepBytes(weights=operand.num_bytes)
    if is_weight_like(operand):
        return StepBytes(weights=operand.num_bytes)
    return StepBytes(activations=operand.num_bytes)


def _cache_read(step: Step, launch: Launch, operand: Operand) -> int:
    if launch.kind is LaunchKind.ATTENTION and step.knows_lengths(launch):
        return step.point.batch * step.facts.cache.token_bytes() * step.point.used_tokens(step.facts.cache.capacity)
    if _scatters(launch, operand):
        return 0
    return operand.num_bytes


def _written(step: Step, launch: Launch, operand: Operand) -> StepBytes:
    if operand.kind is not OperandKind.CACHE:
        return StepBytes(activations=operand.num_bytes)
    if _scatters(launch, operand):
        return StepBytes(cache_written=step.num_tokens * step.facts.cache.token_bytes())
    return StepBytes(cache_written=operand.num_bytes)


def _scatters(launch: Launch, operand: Operand) -> bool:
    """Whether a kernel writes rows into a cache where it lies."""
    return launch.kind is LaunchKind.GENERATED and launch.may_hold("Scat") and operand.base in launch.bases_in_place


def moved_bytes(steps: tuple[Step, ...]) -> StepBytes:
    """Bytes of all launches of a step."""
    total = StepBytes()
    for step in steps:
        for launch in step.launches:
            total = total.plus(launch_bytes(step, launch))
    return total


def copied_bytes(steps: tuple[Step, ...]) -> CopyBytes:
    """Bytes of kernels that only move data."""
    weight_sized = cache_sized = others = 0
    for step in steps:
        weights, caches = weight_copies(step.launches), cache_copies(step.launches, step.facts.cache.capacity)
        weight_sized += sum(copy.num_bytes for copy in weights)
        cache_sized += sum(copy.num_bytes for copy in caches)
        known = {id(copy.launch) for copy in (*weights, *caches)}
        moving = [launch for launch in step.launches if launch.only_moves and id(launch) not in known]
        others += sum(launch_bytes(step, launch).activations for launch in moving)
    return CopyBytes(weight_sized, cache_sized, others)


def offenders(steps: tuple[Step, ...]) -> tuple[Offender, ...]:
    """Kernels by name, those first that move the most beyond weights read once, used cache and rows written."""
    seen_weights: set[str] = set()
    totals: dict[str, tuple[int, int, int]] = {}
    for step in steps:
        for launch in step.launches:
            moved = launch_bytes(step, launch)
            fresh = [operand for operand in launch.reads if is_weight_like(operand) and operand.base not in seen_weights]
            seen_weights.update(operand.base for operand in fresh)
            first_reads = sum(_read(step, launch, operand).weights for operand in fresh)
            excess = moved.total - first_reads - _needed_cache(step, launch)
            count, num_bytes, over = totals.get(launch.label, (0, 0, 0))
            totals[launch.label] = (count + 1, num_bytes + moved.total, over + max(0, excess))
    ranked = sorted(totals.items(), key=lambda item: (-item[1][2], item[0]))
    return tuple(Offender(name, *numbers) for name, numbers in ranked[:_MAX_OFFENDERS] if numbers[2])


def _needed_cache(step: Step, launch: Launch) -> int:
    """The part of a launch's cache traffic that every plan has: used tokens read by attention, new rows written."""
    token_bytes = step.facts.cache.token_bytes()
    used = step.point.batch * step.point.used_tokens(step.facts.cache.capacity) * token_bytes
    read = sum(operand.kind is OperandKind.CACHE for operand in launch.reads) if launch.kind is LaunchKind.ATTENTION else 0
    written = sum(operand.kind is OperandKind.CACHE for operand in launch.writes)
    return read * used + written * step.num_tokens * token_bytes

"""The audit of a compiled plan, from its bytes alone."""

from __future__ import annotations

import mmap
from collections.abc import Iterable, Iterator
from pathlib import Path

from nemodiff_trt.plan_audit.facts import AuditPoint, StepFacts
from nemodiff_trt.plan_audit.launches import attention_counts, gemm_counts, read_launches
from nemodiff_trt.plan_audit.lineage import MIN_WEIGHT_CONSTANT_BYTES
from nemodiff_trt.plan_audit.liveness import peak_activation_bytes
from nemodiff_trt.plan_audit.plan_texts import PlanTexts
from nemodiff_trt.plan_audit.program import Program, find_programs, stored_name
from nemodiff_trt.plan_audit.report import Finding, FindingCode, PlanAudit, PointAudit, ProfileAudit, Severity
from nemodiff_trt.plan_audit.rules import format_findings, megabytes, step_findings
from nemodiff_trt.plan_audit.tensors import OperandKind, TensorTable
from nemodiff_trt.plan_audit.traffic import Step, copied_bytes, moved_bytes, needed_bytes, offenders

# Weights a plan may hold beyond what it should: scales, biases, tables of the kernels.
_CONSTANT_SLACK = 0.01


def audit_plan(plan: bytes, facts: StepFacts) -> PlanAudit:
    """Audit a plan without running it and without TensorRT.

    Args:
        plan: the serialised engine, all of it. Bytes that are no plan, or a damaged one, give a finding and no exception.
        facts: sizes and weights of the engine, its profiles, and the steps to audit.

    Returns:
        Counts and bytes per profile and step, and findings. Nothing in it is measured: see docs/plan_audit.md for the limits.
    """
    return _audit(PlanTexts.of(plan), facts)


def audit_file(path: Path, facts: StepFacts) -> PlanAudit:
    """The same of a file, most of which is never in memory at once.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        if path.stat().st_size == 0:
            return audit_plan(b"", facts)
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as plan:
            texts = PlanTexts.of(plan)
    return _audit(texts, facts)


def _audit(plan: PlanTexts, facts: StepFacts) -> PlanAudit:
    programs, problems = find_programs(plan)
    findings = list(_format_problems(programs, problems, facts))
    profiles = []
    for profile in sorted({program.profile for program in programs}):
        parts = tuple(program for program in programs if program.profile == profile)
        points = facts.points_of(profile)
        steps = [tuple(_step(part, facts, point) for part in parts) for point in points]
        profiles.append(_audit_profile(parts, facts, steps))
        found = [finding for step in steps for finding in step_findings(step)]
        findings += _largest([*found, *format_findings(steps[-1] if steps else (), plan.num_host_copies > 0)])
    constants = _constant_bytes(plan.num_bytes, programs)
    findings += _duplicated_weights(programs, facts, constants)
    findings += _host_round_trips(plan.num_host_copies, programs)
    order = list(FindingCode)
    findings.sort(key=lambda finding: (finding.severity is Severity.INFO, finding.profile or 0, order.index(finding.code)))
    return PlanAudit(facts.role, plan.num_bytes, constants, tuple(profiles), tuple(findings))


def _step(program: Program, facts: StepFacts, point: AuditPoint) -> Step:
    return Step.of(program, facts, point, read_launches(program, TensorTable(program, facts, point)))


def _audit_profile(parts: tuple[Program, ...], facts: StepFacts, steps: list[tuple[Step, ...]]) -> ProfileAudit:
    audited = [
        PointAudit(
            point=step[0].point,
            needed=needed_bytes(facts, step[0].point),
            moved=moved_bytes(step),
            copies=copied_bytes(step),
            offenders=offenders(step),
            peak_activation_bytes=max(peak_activation_bytes(part.program, part.launches) for part in step),
        )
        for step in steps
    ]
    # Kernels do not depend on the sizes, so those of any point will do for counting.
    some = steps[0] if steps else tuple(_step(part, facts, AuditPoint(1, 1, 0)) for part in parts)
    launches = tuple(launch for part in some for launch in part.launches)
    return ProfileAudit(
        profile=parts[0].profile,
        accelerators=parts[0].accelerators,
        launches=len(launches),
        launches_per_layer=len(launches) / facts.num_layers,
        gemms=gemm_counts(launches),
        attention=attention_counts(launches),
        host_copies=sum(operation.kind == "copy" for part in parts for operation in part.main),
        points=tuple(audited),
    )


def _largest(findings: Iterable[Finding]) -> list[Finding]:
    """One finding of a code and severity: that of the step where it costs most."""
    kept: dict[tuple[FindingCode, Severity], Finding] = {}
    for finding in findings:
        key = (finding.code, finding.severity)
        if key not in kept or finding.num_bytes > kept[key].num_bytes:
            kept[key] = finding
    return list(kept.values())


def _format_problems(programs: tuple[Program, ...], problems: tuple[str, ...], facts: StepFacts) -> Iterator[Finding]:
    messages = list(problems[:1])
    if not programs:
        messages.append("no program text found: not a TensorRT-RTX plan, or of a version that this audit does not know")
    else:
        found = sorted({program.profile for program in programs})
        if found != list(range(len(facts.profiles))):
            messages.append(f"programs of profiles {found} found, {len(facts.profiles)} expected")
    for message in messages:
        yield Finding(FindingCode.UNKNOWN_PLAN_FORMAT, Severity.WARNING, message)
    inputs = {stored_name(name) for program in programs for name in program.inputs}
    absent = tuple(name for name, weight in facts.weights.items() if not weight.embedded and name not in inputs)
    if programs and absent:
        message = f"{len(absent)} weights that should be inputs are none of the plan's; they count as needed, not as moved"
        yield Finding(FindingCode.UNKNOWN_PLAN_FORMAT, Severity.INFO, message, None, 0, absent[:6])


def _constant_bytes(plan_bytes: int, programs: tuple[Program, ...]) -> int:
    """Bytes of constants the plan holds.

    Every program declares its own, but programs may share them. They lie behind the last program's text, which bounds them.
    """
    if not programs:
        return 0
    declared = sum(record.payload_bytes or 0 for program in programs for record in program.tensors.values())
    last = max(body.end for program in programs for body in (program, *program.bodies))
    return min(declared, max(0, plan_bytes - last))


def _duplicated_weights(programs: tuple[Program, ...], facts: StepFacts, constants: int) -> Iterator[Finding]:
    """Weights in the plan that its inputs already bring, the same weights held twice, or inputs that look like a second set."""
    table_names: dict[str, int] = {}
    large = 0
    for program in programs:
        table = TensorTable(program, facts, AuditPoint(1, 1, 0))
        for name, record in program.tensors.items():
            operand = table.operand(name)
            if record.payload_bytes and operand.is_matrix and record.payload_bytes >= MIN_WEIGHT_CONSTANT_BYTES:
                large += record.payload_bytes
            is_fixed = all(isinstance(dim, int) for dim in record.dims)
            is_unknown = operand.kind is OperandKind.ACTIVATION and name in program.inputs and name not in program.outputs
            if is_unknown and is_fixed and operand.is_matrix and operand.num_bytes >= MIN_WEIGHT_CONSTANT_BYTES:
                table_names[stored_name(name)] = operand.num_bytes
    total, expected = facts.weight_bytes(), facts.embedded_bytes()
    held = min(large, constants)
    if held > expected + _CONSTANT_SLACK * total:
        message = f"the plan holds {megabytes(held)} of weight-sized constants, {megabytes(expected)} are meant to be in it"
        yield Finding(FindingCode.DUPLICATED_WEIGHTS, Severity.WARNING, message, None, held - expected)
    undeclared = sum(table_names.values())
    if undeclared > _CONSTANT_SLACK * total:
        message = f"{len(table_names)} inputs of weight size, {megabytes(undeclared)}, are none of the stored weights"
        names = tuple(sorted(table_names, key=lambda name: -table_names[name])[:6])
        yield Finding(FindingCode.DUPLICATED_WEIGHTS, Severity.WARNING, message, None, undeclared, names)


def _host_round_trips(num_copies: int, programs: tuple[Program, ...]) -> Iterator[Finding]:
    """Sizes that kernels compute: the host reads them back before it can launch what depends on them."""
    copies = num_copies if programs else 0
    per_profile: dict[int, int] = {}
    for program in programs:
        per_profile[program.profile] = per_profile.get(program.profile, 0) + 1
    split = [profile for profile, count in per_profile.items() if count > 1]
    reasons = []
    if copies:
        reasons.append(f"{copies} sizes are computed on the device and read back by the host")
    if split:
        reasons.append(f"the step is cut into several programs in profiles {split}")
    if reasons:
        yield Finding(FindingCode.HOST_ROUND_TRIP, Severity.WARNING, ", and ".join(reasons))

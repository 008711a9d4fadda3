"""The audit of all engines of one bundle, at the end of its build or later from its files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from nemodiff_trt.bundle import Bundle, RoleEngine
from nemodiff_trt.plan_audit.audit import audit_file
from nemodiff_trt.plan_audit.engine_facts import EngineContext, engine_facts
from nemodiff_trt.plan_audit.report import PlanAudit
from nemodiff_trt.plan_audit.weight_memory import WeightMemory, weight_memory
from nemodiff_trt.vocabulary import Role, Target

# Targets whose engines are plans with a readable program.
AUDITED_TARGETS = (Target.TENSORRT_RTX, Target.TENSORRT)


@dataclass(frozen=True, slots=True)
class BundleAudit:
    """Audit of every role's plan, and of the weights that all of them keep."""

    plans: dict[Role, PlanAudit]
    memory: WeightMemory

    @property
    def warnings(self) -> tuple[str, ...]:
        """One line for each finding of severity warning."""
        # A plan that serves several roles is said once, under the first of them.
        distinct = {id(plan): (role, plan) for role, plan in reversed(self.plans.items())}
        lines = [
            f"{role}: {finding.code}: {finding.message}"
            for role, plan in reversed(distinct.values())
            for finding in plan.warnings
        ]
        return (*lines, *(f"{finding.code}: {finding.message}" for finding in self.memory.findings()))

    def to_dict(self) -> dict[str, Any]:
        """JSON values: `roles`, `weight_memory`, `warnings`."""
        return {
            "roles": {str(role): plan.to_dict() for role, plan in self.plans.items()},
            "weight_memory": self.memory.to_dict(),
            "warnings": list(self.warnings),
        }


def audit_engines(
    audit: Callable[[Role, RoleEngine], PlanAudit],
    roles: Mapping[Role, RoleEngine],
    context: EngineContext,
    on_done: Callable[[int], None] = lambda _: None,
) -> BundleAudit:
    """Audit the plans of `roles`, each plan once.

    Args:
        audit: of a plan, asked for with the first of its roles.
        roles: as in the manifest.
        context: what the engines share.
        on_done: told how many roles are audited.
    """
    plans: dict[Role, PlanAudit] = {}
    audited: dict[str, PlanAudit] = {}
    for done, (role, engine) in enumerate(roles.items(), start=1):
        if engine.file not in audited:
            audited[engine.file] = audit(role, engine)
        plans[role] = audited[engine.file]
        on_done(done)
    memory = weight_memory(context.model, context.precision, roles, context.weights, context.weight_shapes)
    return BundleAudit(plans, memory)


def audit_bundle(bundle: Bundle) -> BundleAudit | None:
    """Audit a bundle from its files; None for a target whose engines are not plans."""
    manifest = bundle.manifest
    if manifest.target not in AUDITED_TARGETS:
        return None
    context = EngineContext.of(manifest)

    def audit(role: Role, engine: RoleEngine) -> PlanAudit:
        return audit_file(bundle.path / engine.file, engine_facts(role, engine, context))

    return audit_engines(audit, manifest.roles, context)

from nemodiff_trt.plan_audit.audit import audit_plan
from nemodiff_trt.plan_audit.facts import AuditPoint, CacheFact, ProfileRange, StepFacts, WeightFact, is_row_table
from nemodiff_trt.plan_audit.report import (
    CopyBytes,
    Finding,
    FindingCode,
    Offender,
    PlanAudit,
    PointAudit,
    ProfileAudit,
    Severity,
    StepBytes,
)

__all__ = [
    "AuditPoint",
    "CacheFact",
    "CopyBytes",
    "Finding",
    "FindingCode",
    "Offender",
    "PlanAudit",
    "PointAudit",
    "ProfileAudit",
    "ProfileRange",
    "Severity",
    "StepBytes",
    "StepFacts",
    "WeightFact",
    "audit_plan",
    "is_row_table",
]

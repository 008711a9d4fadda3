"""What an audit says. Everything is a count, a number of bytes per step, or text; `to_dict` gives JSON values."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from nemodiff_trt.plan_audit.facts import AuditPoint


class Severity(StrEnum):
    """A warning is a defect of the plan or of the audit; information needs no action."""

    INFO = "info"
    WARNING = "warning"


class FindingCode(StrEnum):
    """Stable names of what the audit can find; docs/plan_audit.md says what to do about each."""

    CACHE_COPY = "cache_copy"
    WEIGHT_COPY = "weight_copy"
    DEQUANTIZED_WEIGHT_COPY = "dequantized_weight_copy"
    SCALE_SWIZZLE = "scale_swizzle"
    UNFUSED_ATTENTION = "unfused_attention"
    WHOLE_CACHE_ATTENTION = "whole_cache_attention"
    DUPLICATED_WEIGHTS = "duplicated_weights"
    FP32_GEMM = "fp32_gemm"
    UNQUANTIZED_GEMM = "unquantized_gemm"
    HOST_ROUND_TRIP = "host_round_trip"
    UNKNOWN_PLAN_FORMAT = "unknown_plan_format"


@dataclass(frozen=True, slots=True)
class Finding:
    """One finding. `profile` is None if it concerns the plan as a whole; `num_bytes` are per step, 0 where bytes say nothing.

    `names` are kernels and tensors, the largest first, at most a handful.
    """

    code: FindingCode
    severity: Severity
    message: str
    profile: int | None = None
    num_bytes: int = 0
    names: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class StepBytes:
    """Bytes of one step by what they belong to."""

    weights: int = 0
    cache_read: int = 0
    cache_written: int = 0
    activations: int = 0

    @property
    def cache(self) -> int:
        return self.cache_read + self.cache_written

    @property
    def total(self) -> int:
        return self.weights + self.cache + self.activations

    def plus(self, other: StepBytes) -> StepBytes:
        return StepBytes(
            self.weights + other.weights,
            self.cache_read + other.cache_read,
            self.cache_written + other.cache_written,
            self.activations + other.activations,
        )

    def to_dict(self) -> dict[str, int]:
        return {**dataclasses.asdict(self), "total": self.total}


@dataclass(frozen=True, slots=True)
class CopyBytes:
    """Bytes read and written by kernels that only move data, by the size of what they move."""

    weight_sized: int = 0
    cache_sized: int = 0
    activations: int = 0


@dataclass(frozen=True, slots=True)
class Offender:
    """Kernels of one name: what they move per step, and how much of it no step would have to move."""

    name: str
    launches: int
    num_bytes: int
    excess_bytes: int


@dataclass(frozen=True, slots=True)
class PointAudit:
    """Bytes of one step size. `needed` must move whatever the plan is: weights once, the used cache, the rows written.

    `needed.activations` is an estimate and no part of `ratio`: everything the plan moves over the weights and cache needed.
    `peak_activation_bytes` is the memory that intermediate results take at once.
    """

    point: AuditPoint
    needed: StepBytes
    moved: StepBytes
    copies: CopyBytes
    offenders: tuple[Offender, ...]
    peak_activation_bytes: int

    @property
    def ratio(self) -> float:
        needed = self.needed.weights + self.needed.cache
        return self.moved.total / needed if needed else float(self.moved.total > 0)

    def to_dict(self) -> dict[str, Any]:
        return {
            **dataclasses.asdict(self.point),
            "needed_bytes": self.needed.to_dict(),
            "moved_bytes": self.moved.to_dict(),
            "ratio": self.ratio,
            "copied_bytes": dataclasses.asdict(self.copies),
            "peak_activation_bytes": self.peak_activation_bytes,
            "offenders": [dataclasses.asdict(offender) for offender in self.offenders],
        }


@dataclass(frozen=True, slots=True)
class ProfileAudit:
    """The program of one optimisation profile. Its kernels are the same at every step size; only bytes differ.

    `gemms` counts by operand dtype ("bf16", "fp8", "fp4", ...; "bf16 x fp8" where they differ), those inside runtime fusions
    included. `attention` counts fused attention kernels by name. `host_copies` are sizes sent to the device, a few bytes each.
    """

    profile: int
    accelerators: tuple[str, ...]
    launches: int
    launches_per_layer: float
    gemms: dict[str, int]
    attention: dict[str, int]
    host_copies: int
    points: tuple[PointAudit, ...]

    def to_dict(self) -> dict[str, Any]:
        plain = {field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.name != "points"}
        return {**plain, "accelerators": list(self.accelerators), "points": [point.to_dict() for point in self.points]}


@dataclass(frozen=True, slots=True)
class PlanAudit:
    """Audit of one plan. `constant_bytes` is what the plan holds as constants, an upper bound."""

    role: str
    plan_bytes: int
    constant_bytes: int
    profiles: tuple[ProfileAudit, ...]
    findings: tuple[Finding, ...]

    @property
    def warnings(self) -> tuple[Finding, ...]:
        return tuple(finding for finding in self.findings if finding.severity is Severity.WARNING)

    @property
    def codes(self) -> frozenset[FindingCode]:
        """Codes of all warnings."""
        return frozenset(finding.code for finding in self.warnings)

    def to_dict(self) -> dict[str, Any]:
        return {
            "role": str(self.role),
            "plan_bytes": self.plan_bytes,
            "constant_bytes": self.constant_bytes,
            "profiles": [profile.to_dict() for profile in self.profiles],
            "findings": [
                {
                    **dataclasses.asdict(finding),
                    "code": str(finding.code),
                    "severity": str(finding.severity),
                    "names": list(finding.names),
                }
                for finding in self.findings
            ],
        }

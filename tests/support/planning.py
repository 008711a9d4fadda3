"""Devices and requests for the planner."""

from __future__ import annotations

from nemodiff_trt.runtime.planner import Choice, LatencyModel, PlannedRequest, Policy
from nemodiff_trt.runtime.planner.latency_model import Coefficients
from nemodiff_trt.vocabulary import Role


def device(fixed: float, compute: float) -> LatencyModel:
    """A GPU-like device where a step costs `fixed` until tokens are many."""
    roles = (Role.DECODE, Role.DRAFT, Role.VERIFY)
    return LatencyModel("made up", True, {role: Coefficients(fixed, 0.0, compute, 0.0, 0.0) for role in roles})


def planned(policy: Policy, *own: int, slots: list[int] | None = None, cycles: int = 400) -> list[PlannedRequest]:
    """Requests that had `cycles` cycles with 32 tokens, of whose drafts so many were accepted."""
    requests = [PlannedRequest(policy.acceptance, slot=slot) for slot in slots or range(len(own))]
    for request, accepted in zip(requests, own, strict=True):
        request.next_cycle = Choice(32)
        for _ in range(cycles):
            request.observe(accepted)
    return requests


def lengths(requests: list[PlannedRequest]) -> list[int]:
    return [request.next_cycle.block_length for request in requests]

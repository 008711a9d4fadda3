"""The policy of a bundle whose step times were measured here."""

from __future__ import annotations

from pathlib import Path

from nemodiff_trt.runtime.planner.latency_model import measured_latency
from nemodiff_trt.runtime.planner.policy import Policy
from nemodiff_trt.runtime.session import Session
from nemodiff_trt.vocabulary import Objective


def open_policy(bundle: Path, session: Session, objective: Objective | None = None) -> Policy | None:
    """Policy by the step times that `nemodiff calibrate` wrote beside the bundle; None where there are none.

    Raises:
        BundleError: the file is there and cannot be used.
    """
    latency = measured_latency(bundle)
    return Policy.for_session(session, latency, objective) if latency is not None else None

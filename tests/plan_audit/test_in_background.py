"""Audits in processes of their own."""

from __future__ import annotations

from pathlib import Path

import pytest

from nemodiff_trt.errors import AuditError
from nemodiff_trt.plan_audit import audit_plan
from nemodiff_trt.plan_audit.in_background import BackgroundAudits
from support import program_texts as texts
from support.one_layer import CLEAN, FACTS, layer

PLANS = {
    "clean.plan": texts.plan(layer(CLEAN), rest=b"\1" * 64),
    "twice.plan": texts.plan(layer(CLEAN[:3]), layer(CLEAN[3:])) + 2 * b"[DevicetoShapeHostCopy]",
    "empty.plan": b"",
}


def test_they_find_what_an_audit_in_this_process_finds(tmp_path: Path) -> None:
    with BackgroundAudits() as audits:
        for name, plan in PLANS.items():
            (tmp_path / name).write_bytes(plan)
            audits.start(tmp_path / name, FACTS)
        for name, plan in PLANS.items():
            assert audits.result(tmp_path / name) == audit_plan(plan, FACTS)


def test_a_failure_names_the_plan_and_the_reason(tmp_path: Path) -> None:
    with BackgroundAudits() as audits:
        audits.start(tmp_path / "none.plan", FACTS)
        with pytest.raises(AuditError, match=r"the audit of none\.plan ended with code 1: FileNotFoundError"):
            audits.result(tmp_path / "none.plan")

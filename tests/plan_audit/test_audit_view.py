"""The audit as text: from the same JSON values that a bundle's report stores."""

from __future__ import annotations

import io
import json

from rich.console import Console

from nemodiff_trt.plan_audit import PlanAudit, audit_plan
from nemodiff_trt.runtime.cli.audit_view import print_audit
from support import program_texts as texts
from support.one_layer import CLEAN, FACTS, GATHER, GEMM, SCATTER, audit_layer


def shown(audit: PlanAudit) -> str:
    console = Console(file=io.StringIO(), width=200)
    print_audit(console, "engines/[verify].plan", json.loads(json.dumps(audit.to_dict())))
    output = console.file
    assert isinstance(output, io.StringIO)
    return output.getvalue()


def test_clean_plan() -> None:
    audit = audit_layer(CLEAN)
    text = shown(audit)
    assert "engines/[verify].plan" in text
    assert "no findings" in text
    assert "1 _gemm_mha_v2" in text
    assert f"{audit.profiles[0].points[0].ratio:.3f}" in text


def test_findings_are_printed_with_their_names() -> None:
    blind = texts.function("_gemv_mha_v1", ("k", "v", "x", "s"), ("x",))
    audit = audit_layer((GATHER, GEMM, SCATTER, blind))
    text = shown(audit)
    assert "warning whole_cache_attention profile 0" in text
    assert "  _gemv_mha_v1" in text


def test_something_that_is_no_plan() -> None:
    assert "unknown_plan_format" in shown(audit_plan(b"\0", FACTS))

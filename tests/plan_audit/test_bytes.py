"""What a program moves, worked out by hand: one layer, G = 2, K = 64, D = 8, hidden 16, bf16."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import pytest

from nemodiff_trt.plan_audit import AuditPoint, PlanAudit
from support import program_texts as texts
from support.one_layer import CLEAN, FACTS, TOKEN_BYTES, audit_layer


def audit(main: Iterable[str], point: AuditPoint) -> PlanAudit:
    return audit_layer(main, facts=replace(FACTS, points=(point,)))


@pytest.mark.parametrize("point", [AuditPoint(1, 1, 0), AuditPoint(1, 4, 10), AuditPoint(3, 2, 7)])
def test_clean_program(point: AuditPoint) -> None:
    result = audit(CLEAN, point)
    assert result.findings == ()
    (profile,) = result.profiles
    assert (profile.launches, profile.gemms, profile.attention) == (5, {"bf16": 1}, {"_gemm_mha_v2": 1})
    step, tokens = profile.points[0], point.batch * point.step
    assert step.needed.weights == step.moved.weights == tokens * 32 + 32 + 1536
    assert step.needed.cache_read == step.moved.cache_read == 2 * TOKEN_BYTES * point.batch * (point.cache_tokens + point.step)
    assert step.needed.cache_written == step.moved.cache_written == 2 * TOKEN_BYTES * tokens
    lengths = point.batch * (8 + 4)
    x, y, ids = tokens * 32, tokens * 96, tokens * 8
    # lengths, gather, gemm, scatter, attention
    assert step.moved.activations == lengths + (ids + x) + (x + y) + y + (x + point.batch * 4 + x)


def test_views_of_one_tensor_count_once_and_no_more_than_the_tensor() -> None:
    both = audit((texts.function("__myl_Mul", ("y", "y_left", "y_right", "y"), ("x",)),), AuditPoint(1, 2, 0))
    half = audit((texts.function("__myl_Mul", ("y_left", "y_left"), ("x",)),), AuditPoint(1, 2, 0))
    assert both.profiles[0].points[0].moved.activations == 2 * 96 + 2 * 32
    assert half.profiles[0].points[0].moved.activations == 2 * 48 + 2 * 32


def test_workspace_and_sizes_on_the_host_count_nothing() -> None:
    moved = audit((texts.function("__myl_Mul", ("x", "b", "workspace"), ("x",)),), AuditPoint(1, 1, 0))
    assert moved.profiles[0].points[0].moved.total == 2 * 32


def test_a_table_that_is_not_gathered_is_read_whole() -> None:
    kernel = texts.function("__myl_MulSum", ("embed_tokens.weight.1", "x"), ("x",))
    assert audit((kernel,), AuditPoint(1, 1, 0)).profiles[0].points[0].moved.weights == 3200


def test_a_name_that_was_cut_off_may_gather_and_scatter() -> None:
    kernel = texts.function("__myl_MoveReshEtc", ("embed_tokens.weight.1", "input_ids.1", "k", "x"), ("x", "k"))
    moved = audit((kernel,), AuditPoint(1, 3, 0)).profiles[0].points[0].moved
    assert (moved.weights, moved.cache_read, moved.cache_written) == (3 * 32, 0, 3 * TOKEN_BYTES)


def test_an_in_place_kernel_that_does_not_scatter_moves_the_whole_cache() -> None:
    kernel = texts.function("__myl_MulAdd", ("k", "x"), ("k",))
    moved = audit((kernel,), AuditPoint(2, 1, 0)).profiles[0].points[0].moved
    assert (moved.cache_read, moved.cache_written) == (2 * 64 * TOKEN_BYTES, 2 * 64 * TOKEN_BYTES)


def test_conditional_variants_are_one_launch() -> None:
    variant = 'cond_fqn = { exec_cond = "s" function = __myl_Mul_0x1_com binary = 0 } '
    profile = audit((texts.function("__myl_Mul", ("x",), ("x",), variant),), AuditPoint(1, 1, 0)).profiles[0]
    assert profile.launches == 1


def test_ratio_and_json() -> None:
    step = audit(CLEAN, AuditPoint(1, 1, 0)).profiles[0].points[0]
    assert step.ratio == step.moved.total / (step.needed.weights + step.needed.cache)
    plain = audit(CLEAN, AuditPoint(1, 1, 0)).to_dict()
    assert plain["profiles"][0]["points"][0]["moved_bytes"]["total"] == step.moved.total

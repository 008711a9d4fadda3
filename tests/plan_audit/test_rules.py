"""Findings over small programs written by hand, each beside a twin that must not be found."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from nemodiff_trt.plan_audit import AuditPoint, FindingCode, PlanAudit, ProfileRange, Severity, WeightFact, audit_plan
from nemodiff_trt.vocabulary import Precision
from support import program_texts as texts
from support.one_layer import ATTENTION, CLEAN, FACTS, GATHER, GEMM, LENGTHS, SCATTER, WEIGHTS, audit_layer, layer


def codes(result: PlanAudit) -> list[str]:
    return [str(finding.code) for finding in result.warnings]


def test_cache_copy() -> None:
    wide = texts.tensor("wide", '"b" 4 64 8')
    attention = texts.function("_gemm_mha_v2", ("wide", "v", "x", "lengths"), ("x",))
    copy = texts.function("__myl_ReshReplReshMove", ("k",), ("wide",))
    result = audit_layer((LENGTHS, GATHER, GEMM, SCATTER, copy, attention), wide)
    assert codes(result) == ["cache_copy"]
    (finding,) = result.findings
    assert finding.num_bytes == 2 * 64 * 2 * 8 * 2 + 2 * 64 * 4 * 8 * 2
    assert finding.names == ("__myl_ReshReplReshMove", "k")
    assert result.profiles[0].points[0].copies.cache_sized == finding.num_bytes


def test_rows_taken_from_a_cache_are_no_copy() -> None:
    rows = texts.function("__myl_Slic", ("k",), ("x",))
    assert codes(audit_layer((*CLEAN, rows))) == []


def test_weight_copy() -> None:
    turned = texts.tensor("turned", "16 48")
    copy = texts.function("__myl_Tran", ("out.weight.1",), ("turned",))
    result = audit_layer((LENGTHS, GATHER, copy, texts.gemm(("x", "turned"), "y"), SCATTER, ATTENTION), turned)
    assert codes(result) == ["weight_copy"]
    assert result.findings[0].num_bytes == result.profiles[0].points[0].copies.weight_sized == 2 * 1536


def test_normalisation_is_no_copy_of_its_weight() -> None:
    scale = texts.function("__myl_Mul", ("norm.weight.1", "x"), ("x",))
    reshaped = texts.function("__myl_Resh", ("norm.weight.1",), ("flat",))
    assert codes(audit_layer((*CLEAN, scale, reshaped), texts.tensor("flat", "1 16"))) == []


def quantized(dtype: str, copied_dtype: str, operands: tuple[str, ...]) -> PlanAudit:
    """A kernel that depends on a stored 8-bit tensor only, and a multiplication with these operands."""
    weights = {**WEIGHTS, "small": WeightFact(dtype, (16, 48), 768)}
    tensors = (texts.tensor("small.1", "16 48", dtype), texts.tensor("made", "16 48", copied_dtype))
    copy = texts.function("__myl_CastMul", ("small.1",), ("made",))
    main = (LENGTHS, GATHER, copy, texts.gemm(operands, "y"), SCATTER, ATTENTION)
    return audit_layer(main, *tensors, inputs=("small.1",), facts=replace(FACTS, weights=weights))


def test_dequantized_weight_copy() -> None:
    assert codes(quantized("fp8_e4m3", "bf16", ("x", "made"))) == ["dequantized_weight_copy"]


def test_scale_swizzle() -> None:
    result = quantized("fp8_e4m3", "fp8_e4m3", ("x", "w^deref", "beta", "x", "made"))
    assert FindingCode.SCALE_SWIZZLE in result.codes
    assert FindingCode.WEIGHT_COPY not in result.codes


def test_unfused_attention() -> None:
    scores = texts.tensor("scores", '"b" 2 "s" 64')
    result = audit_layer((LENGTHS, GATHER, GEMM, SCATTER, texts.gemm(("x", "k"), "scores")), scores)
    assert codes(result) == ["unfused_attention"]
    assert "0 fused attention kernels for 1 layers" in result.findings[0].message


def test_copies_for_unfused_attention_are_part_of_its_finding() -> None:
    tensors = (texts.tensor("scores", '"b" 2 "s" 64'), texts.tensor("turned", '"b" 2 8 64'))
    turn = texts.function("__myl_Tran", ("k",), ("turned",))
    result = audit_layer((LENGTHS, GATHER, GEMM, SCATTER, turn, texts.gemm(("x", "turned"), "scores")), *tensors)
    assert codes(result) == ["unfused_attention"]
    assert "1 that copy caches" in result.findings[0].message


def test_whole_cache_attention() -> None:
    blind = texts.function("_gemv_mha_v1", ("k", "v", "x", "s"), ("x",))
    result = audit_layer((GATHER, GEMM, SCATTER, blind))
    assert codes(result) == ["whole_cache_attention"]
    assert "all 64 slots, 12 of which are used" in result.findings[0].message
    assert result.profiles[0].points[0].moved.cache_read == 2 * 2 * 64 * 32


def test_an_integer_that_is_no_length_does_not_count_as_one() -> None:
    offset = texts.tensor("offset", "1", "int32")
    blind = texts.function("_gemm_mha_v2", ("k", "v", "x", "offset"), ("x",))
    made = texts.function("__myl_Cast", ("input_ids.1",), ("offset",))
    assert codes(audit_layer((GATHER, GEMM, SCATTER, made, blind), offset)) == ["whole_cache_attention"]


def test_fp32_gemm_only_where_fp32_is_not_meant() -> None:
    wide = texts.tensor("wide", '"b" "s" 16', "float")
    main = (LENGTHS, GATHER, texts.gemm(("wide", "w^deref"), "y"), SCATTER, ATTENTION)
    result = audit_layer(main, wide)
    assert codes(result) == ["fp32_gemm"]
    assert result.profiles[0].gemms == {"fp32 x bf16": 1}
    assert codes(audit_layer(main, wide, facts=replace(FACTS, precision=Precision.FP32))) == []


def test_gemms_inside_fusions_are_counted_and_judged() -> None:
    body = texts.program(
        ("a", "w"),
        ("out",),
        (texts.tensor("a", "8 16", "float"), texts.tensor("w", "16 48", "float")),
        (texts.gemm(("a", "w"), "out"),),
        accelerators="*",
    )
    text = layer((LENGTHS, GATHER, texts.fusion(("x", "w^deref"), "y"), SCATTER, ATTENTION))
    result = audit_plan(texts.plan(text, body), FACTS)
    assert result.profiles[0].gemms == {"fp32": 1}
    assert codes(result) == ["fp32_gemm"]


def test_host_round_trip() -> None:
    read = '  copy={ name="copy_d2h_7" output={"read" } input={"lengths" } stream=0 }'
    sent = '  copy={ name="copy_h2d_7" output={"lengths" } input={"s" } stream=0 }'
    result = audit_layer((*CLEAN, read), texts.size("read"))
    assert codes(result) == ["host_round_trip"]
    harmless = audit_layer((*CLEAN, sent))
    assert codes(harmless) == []
    assert harmless.profiles[0].host_copies == 1
    assert harmless.profiles[0].launches == len(CLEAN)


def test_a_step_cut_into_two_programs_is_a_round_trip() -> None:
    result = audit_plan(texts.plan(layer(CLEAN[:3]), layer(CLEAN[3:])), FACTS)
    assert "host_round_trip" in codes(result)
    assert "unfused_attention" not in codes(result)
    assert result.profiles[0].launches == len(CLEAN)


def test_duplicated_weights() -> None:
    constant = texts.tensor("c", "512 512", region="consts", payload_bytes=524288)
    rest = b"\1" * 600_000
    baked = audit_plan(texts.plan(layer(CLEAN, constant), rest=rest), FACTS)
    assert codes(baked) == ["duplicated_weights"]
    assert baked.constant_bytes == 524288
    meant = replace(FACTS, weights={**WEIGHTS, "c": WeightFact("bfloat16", (512, 512), 524288, embedded=True)})
    assert codes(audit_plan(texts.plan(layer(CLEAN, constant), rest=rest), meant)) == []


def test_constants_that_programs_share_are_held_once() -> None:
    constant = texts.tensor("c", "512 512", region="consts", payload_bytes=524288)
    facts = replace(
        FACTS,
        weights={**WEIGHTS, "c": WeightFact("bfloat16", (512, 512), 524288, embedded=True)},
        profiles=(ProfileRange(1, 1, 1, 1), ProfileRange(1, 8, 2, 32)),
    )
    second = layer(CLEAN, constant, inputs=("z [profile 1].1",))
    once = texts.plan(layer(CLEAN, constant), second, rest=b"\1" * 525_000)
    twice = texts.plan(layer(CLEAN, constant), second, rest=b"\1" * 1_050_000)
    assert codes(audit_plan(once, facts)) == []
    assert codes(audit_plan(twice, facts)) == ["duplicated_weights"]


def test_inputs_that_look_like_a_second_set() -> None:
    other = texts.tensor("other.weight.1", "512 512")
    assert codes(audit_layer(CLEAN, other, inputs=("other.weight.1",))) == ["duplicated_weights"]


def test_small_constants_and_vectors_are_no_weights() -> None:
    bias = texts.tensor("bias", "1 1 131072", "float", "consts", payload_bytes=524288)
    assert codes(audit_plan(texts.plan(layer(CLEAN, bias), rest=b"\1" * 600_000), FACTS)) == []


def test_a_size_that_cannot_be_worked_out_is_reported() -> None:
    result = audit_layer((*CLEAN, texts.function("__myl_Mul", ("lost",), ("x",))), texts.tensor("lost", '"nobody" 4'))
    assert codes(result) == ["unknown_plan_format"]
    assert result.findings[0].names == ("lost",)


def test_an_operation_of_an_unknown_kind_is_counted_and_told() -> None:
    strange = '  teleport={ name="t" input={"x" } output={"x" } }'
    result = audit_layer((*CLEAN, strange))
    assert [(finding.code, finding.severity) for finding in result.findings] == [
        (FindingCode.UNKNOWN_PLAN_FORMAT, Severity.INFO)
    ]
    assert result.profiles[0].launches == len(CLEAN) + 1


def test_the_largest_of_several_points_is_kept() -> None:
    facts = replace(FACTS, points=(AuditPoint(1, 1, 0), AuditPoint(8, 32, 0), AuditPoint(2, 2, 0)))
    blind = texts.function("_gemv_mha_v1", ("k", "v", "x", "s"), ("x",))
    result = audit_layer((GATHER, GEMM, SCATTER, blind), facts=facts)
    assert len(result.profiles[0].points) == 3
    assert [finding.message.split(":")[0] for finding in result.findings] == ["at B=8, S=32"]


def test_a_missing_profile_is_told() -> None:
    facts = replace(FACTS, profiles=(ProfileRange(1, 8, 1, 32), ProfileRange(1, 8, 64, 64)))
    assert codes(audit_layer(CLEAN, facts=facts)) == ["unknown_plan_format"]


def test_a_weight_that_is_no_input_is_told() -> None:
    facts = replace(FACTS, weights={**WEIGHTS, "lost.weight": WeightFact("bfloat16", (16, 16), 512)})
    result = audit_layer(CLEAN, facts=facts)
    assert [(finding.severity, finding.names) for finding in result.findings] == [(Severity.INFO, ("lost.weight",))]


@pytest.mark.parametrize("code", FindingCode)
def test_every_code_is_documented(code: FindingCode) -> None:
    page = Path(__file__).parents[2] / "docs" / "plan_audit.md"
    assert f"### `{code}`" in page.read_text(encoding="utf-8")

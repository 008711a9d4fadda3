"""Real plans of small decoders: a clean one has no warning, each defect put in on purpose has exactly its own."""

from __future__ import annotations

import pytest

from nemodiff_trt.plan_audit import AuditPoint, FindingCode, audit_plan
from support.rtx_networks import Decoder, Defects, Sizes
from support.rtx_plans import build_plan, facts_of

ONE_TOKEN = Sizes(steps=((1, 1),))
BLOCK = Sizes(steps=((32, 32),))
# As many KV heads as query heads: attention of separate kernels needs no expansion.
MULTI_HEAD = Sizes(num_kv_heads=8)
DYNAMIC = Sizes(steps=((1, 1), (2, 32)), max_batch=4)

pytestmark = pytest.mark.usefixtures("tensorrt_rtx")


@pytest.fixture(scope="module")
def dynamic_plan() -> tuple[bytes, Decoder]:
    return build_plan(DYNAMIC)


@pytest.mark.parametrize("sizes", [ONE_TOKEN, BLOCK, DYNAMIC, Sizes(head_dim=128, hidden=1024)])
@pytest.mark.parametrize("causal", [True, False])
def test_clean_decoder(sizes: Sizes, causal: bool) -> None:
    plan, decoder = build_plan(sizes, Defects(causal=causal))
    audit = audit_plan(plan, facts_of(decoder))
    assert audit.findings == ()
    assert [sum(profile.attention.values()) for profile in audit.profiles] == [sizes.num_layers] * len(sizes.steps)
    assert [profile.gemms for profile in audit.profiles] == [{"bf16": 2 * sizes.num_layers + 1}] * len(sizes.steps)


@pytest.mark.parametrize("step", [2, 8, 32])
@pytest.mark.parametrize("cache_tokens", [0, 100, 900])
def test_weights_and_cache_of_a_clean_plan_move_once(dynamic_plan: tuple[bytes, Decoder], step: int, cache_tokens: int) -> None:
    plan, decoder = dynamic_plan
    audit = audit_plan(plan, facts_of(decoder, AuditPoint(2, step, cache_tokens), AuditPoint(2, 1, cache_tokens)))
    for profile in audit.profiles:
        (point,) = profile.points
        assert point.moved.weights == point.needed.weights
        assert point.moved.cache_read == point.needed.cache_read
        assert point.moved.cache_written == point.needed.cache_written
        assert point.copies.weight_sized == point.copies.cache_sized == 0
        assert point.needed.activations < point.moved.activations


DEFECTS = {
    "cache copied, S = 32": (BLOCK, Defects(no_query_boundary=True), FindingCode.CACHE_COPY),
    "cache copied, dynamic": (DYNAMIC, Defects(no_query_boundary=True), FindingCode.CACHE_COPY),
    "cache copied, head_dim without a kernel of its own": (
        Sizes(head_dim=96, num_kv_heads=8),
        Defects(),
        FindingCode.CACHE_COPY,
    ),
    "weights [in,out] at S = 1": (ONE_TOKEN, Defects(in_out_weights=True), FindingCode.WEIGHT_COPY),
    "weights turned by a shuffle": (BLOCK, Defects(shuffled_weights=True), FindingCode.WEIGHT_COPY),
    "NVFP4 weights, bf16 activations": (BLOCK, Defects(weight_only_nvfp4=True), FindingCode.DEQUANTIZED_WEIGHT_COPY),
    "block scales as inputs": (BLOCK, Defects(scales_as_inputs=True), FindingCode.SCALE_SWIZZLE),
    "attention of separate kernels": (MULTI_HEAD, Defects(explicit_attention=True), FindingCode.UNFUSED_ATTENTION),
    "no lengths, S = 1": (ONE_TOKEN, Defects(no_lengths=True), FindingCode.WHOLE_CACHE_ATTENTION),
    "no lengths, S = 32": (BLOCK, Defects(no_lengths=True), FindingCode.WHOLE_CACHE_ATTENTION),
    "no lengths, dynamic": (Sizes(steps=((2, 32),)), Defects(no_lengths=True), FindingCode.WHOLE_CACHE_ATTENTION),
    "no lengths, bidirectional": (BLOCK, Defects(no_lengths=True, causal=False), FindingCode.WHOLE_CACHE_ATTENTION),
    "linears in fp32": (BLOCK, Defects(fp32_linears=True), FindingCode.FP32_GEMM),
    "weights in the plan": (BLOCK, Defects(baked_weights=True), FindingCode.DUPLICATED_WEIGHTS),
    "size computed by the device": (BLOCK, Defects(size_from_data=True), FindingCode.HOST_ROUND_TRIP),
}


@pytest.mark.parametrize("name", DEFECTS)
def test_defect(name: str) -> None:
    sizes, defects, code = DEFECTS[name]
    plan, decoder = build_plan(sizes, defects)
    audit = audit_plan(plan, facts_of(decoder))
    assert audit.codes == {code}, audit.warnings


def test_a_weight_layout_that_suits_the_step_is_not_found() -> None:
    """[in,out] is what S > 1 multiplies with: the same network as above, without its defect."""
    plan, decoder = build_plan(BLOCK, Defects(in_out_weights=True))
    assert audit_plan(plan, facts_of(decoder)).findings == ()


def test_embedded_weights_of_two_profiles_that_pack_them_differently() -> None:
    sizes = Sizes(steps=((1, 1), (2, 32)))
    matrices = {"layers.0.qkv", "layers.0.out", "layers.1.qkv", "layers.1.out", "head"}
    for steps, codes in ((sizes.steps[1:], set()), (sizes.steps, {FindingCode.DUPLICATED_WEIGHTS})):
        plan, decoder = build_plan(Sizes(steps=steps), Defects(baked_weights=True))
        decoder.embedded |= {f"{name}.weight" for name in matrices}
        assert audit_plan(plan, facts_of(decoder)).codes == codes


def test_copies_are_part_of_the_bytes_moved() -> None:
    clean, decoder = build_plan(BLOCK)
    copied, _ = build_plan(BLOCK, Defects(no_query_boundary=True))
    points = [audit_plan(plan, facts_of(decoder)).profiles[0].points[0] for plan in (clean, copied)]
    cache_bytes = BLOCK.num_kv_heads * BLOCK.capacity * BLOCK.head_dim * 2
    groups = BLOCK.num_heads // BLOCK.num_kv_heads
    # Per layer K and V are read, written for every query head, and read again.
    assert points[1].copies.cache_sized == 2 * BLOCK.num_layers * cache_bytes * (1 + groups)
    assert points[1].ratio > points[0].ratio

"""ONNX engines against the eager decoder, role by role, with ONNX Runtime's own optimizer on as in production."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import onnx
import pytest
import torch
from torch import Tensor

from nemodiff_trt.build_engines.lowering import lower_to_onnx
from nemodiff_trt.contract import ADAPTER_ROWS, INPUT_IDS, LAST_INDEX, LOGITS
from nemodiff_trt.errors import LoweringError
from nemodiff_trt.model import TriModeDecoder
from nemodiff_trt.options import AdapterForm
from nemodiff_trt.vocabulary import Precision, Role
from support.checkpoints import random_decoder, tiny_config
from support.engines import ALL_ROLES, Engines, compile_decoder
from support.graphs import GraphBuilder
from support.steps import EagerStep

CAPACITY = 64
MASK = tiny_config().mask_token_id


@pytest.fixture(scope="module")
def decoder() -> TriModeDecoder:
    return random_decoder(tiny_config(), CAPACITY)


@pytest.fixture(scope="module")
def engines(decoder: TriModeDecoder, tmp_path_factory: pytest.TempPathFactory) -> Engines:
    return compile_decoder(decoder, tmp_path_factory.mktemp("fp32"), keep_logits=True)


def expected(step: EagerStep, role: Role) -> dict[str, Tensor]:
    """The contract's outputs of `role` by the eager decoder, logits included."""
    outputs = step.run(role.is_causal, role.uses_adapter, role.takes_layout)
    if role is Role.PREFILL:
        rows = torch.arange(step.inputs[INPUT_IDS].shape[0])
        outputs[LOGITS] = outputs[LOGITS][rows, step.inputs[LAST_INDEX]][:, None]
    token, confidence = torch.ops.nemodiff.decision_head(outputs[LOGITS], MASK)
    return {"token": token, "confidence": confidence, **outputs}


def step_length(role: Role) -> int:
    return 1 if role is Role.DECODE else 5


def compare(found: dict[str, Tensor], wanted: dict[str, Tensor], rtol: float, atol: float) -> None:
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(
            found[name].to(value.dtype), value, rtol=rtol, atol=atol, msg=lambda text, n=name: f"{n}: {text}"
        )


@pytest.mark.parametrize("role", ALL_ROLES)
@pytest.mark.parametrize("lengths", [(0,), (0, 40, 3), (59, 59)])
def test_fp32_engine_equals_eager(engines: Engines, decoder: TriModeDecoder, role: Role, lengths: tuple[int, ...]) -> None:
    step = EagerStep.random(decoder, lengths, step_length(role), CAPACITY, seed=len(lengths))
    # Two layers of fp32 rounding on values of order 1 to 10.
    compare(engines.run(role, step.inputs), expected(step, role), rtol=1e-5, atol=2e-5)


def test_roles_differ_where_they_must(engines: Engines, decoder: TriModeDecoder) -> None:
    step = EagerStep.random(decoder, (7, 20), 5, CAPACITY)
    verify, denoise, draft = (engines.run(role, step.inputs)[LOGITS] for role in (Role.VERIFY, Role.DENOISE, Role.DRAFT))
    assert (verify - denoise).abs().max() > 0.1
    assert (denoise - draft).abs().max() > 0.1
    # The last row of a causal and a bidirectional step differ through earlier rows only, the first row directly.
    assert (verify[:, 0] - denoise[:, 0]).abs().max() > 0.1


def test_capacity_of_the_cache_is_free_up_to_the_tables(engines: Engines, decoder: TriModeDecoder) -> None:
    wide = EagerStep.random(decoder, (4, 9), 3, CAPACITY)
    narrow = EagerStep(decoder, {name: value[:, :, :12] if value.ndim == 4 else value for name, value in wide.inputs.items()})
    assert torch.equal(engines.run(Role.VERIFY, wide.inputs)[LOGITS], engines.run(Role.VERIFY, narrow.inputs)[LOGITS])


def test_slots_after_the_step_are_never_read(engines: Engines, decoder: TriModeDecoder) -> None:
    step = EagerStep.random(decoder, (4, 9), 3, CAPACITY)
    poisoned = {name: value.clone() for name, value in step.inputs.items()}
    for value in poisoned.values():
        if value.ndim == 4:
            value[0, :, 7:], value[1, :, 12:] = 1e6, 1e6
    for role in (Role.VERIFY, Role.DENOISE):
        assert torch.equal(engines.run(role, poisoned)[LOGITS], engines.run(role, step.inputs)[LOGITS])


def test_merged_adapter_equals_the_low_rank_branch(decoder: TriModeDecoder, tmp_path: Path) -> None:
    merged = compile_decoder(decoder, tmp_path, keep_logits=True, adapter_form=AdapterForm.MERGED)
    step = EagerStep.random(decoder, (7, 20), 5, CAPACITY)
    compare(merged.run(Role.DRAFT, step.inputs), expected(step, Role.DRAFT), rtol=1e-5, atol=2e-5)
    compare(merged.run(Role.VERIFY, step.inputs), expected(step, Role.VERIFY), rtol=1e-5, atol=2e-5)


def test_without_adapter_drafting_is_denoising_and_shares_its_engine(decoder: TriModeDecoder, tmp_path: Path) -> None:
    plain = compile_decoder(decoder, tmp_path, adapter_form=AdapterForm.NONE)
    assert plain.roles[Role.DRAFT].file == plain.roles[Role.DENOISE].file
    assert plain.roles[Role.DENOISE].shared_with == (Role.DRAFT,)
    assert plain.roles[Role.DECODE].file == plain.roles[Role.VERIFY].file


def is_rounded(name: str, value: Tensor) -> bool:
    return value.is_floating_point() and name != ADAPTER_ROWS


@pytest.fixture(scope="module")
def half_engines(decoder: TriModeDecoder, tmp_path_factory: pytest.TempPathFactory) -> Engines:
    return compile_decoder(decoder, tmp_path_factory.mktemp("fp16"), Precision.FP16, keep_logits=True)


@pytest.mark.parametrize("role", ALL_ROLES)
def test_fp16_engine_stays_within_its_rounding(half_engines: Engines, decoder: TriModeDecoder, role: Role) -> None:
    # The oracle computes exactly (fp64) with the numbers the engine holds: weights and caches rounded to fp16.
    exact = TriModeDecoder(decoder.config, CAPACITY)
    exact.attach_adapter(4, 4.0)
    exact.load_state_dict(decoder.state_dict())
    exact = exact.requires_grad_(False).half().double()
    step = EagerStep.random(exact, (0, 40, 3), step_length(role), CAPACITY)
    half = {name: value.half() if is_rounded(name, value) else value for name, value in step.inputs.items()}
    step = EagerStep(exact, {name: value.double() if is_rounded(name, value) else value for name, value in half.items()})
    found, wanted = half_engines.run(role, half), expected(step, role)
    for name in wanted.keys() - {"token"}:
        # Unit roundoff 4.9e-4; some twenty roundings lie on a path through two layers. They add as a square root, and four
        # standard deviations of that are 20 ** 0.5 * 4 * 4.9e-4 = 8.8e-3 of the largest value.
        error = (found[name].double() - wanted[name].double()).abs().max() / wanted[name].double().abs().max()
        assert error < 8.8e-3, name
    assert found["confidence"].dtype == found[LOGITS].dtype == torch.float32
    # The decision itself is exact, given the engine's own logits.
    token, confidence = torch.ops.nemodiff.decision_head(found[LOGITS], MASK)
    assert torch.equal(found["token"], token)
    torch.testing.assert_close(found["confidence"], confidence, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("theta", [1e6, 1e9])
def test_positions_beyond_the_original_context(theta: float, tmp_path: Path) -> None:
    config = tiny_config(max_position_embeddings=262_144)
    rope = dataclasses.replace(
        config.rope_parameters, rope_theta=theta, original_max_position_embeddings=16_384, beta_fast=32.0
    )
    decoder = random_decoder(dataclasses.replace(config, rope_parameters=rope, num_hidden_layers=1), 16_500)
    engines = compile_decoder(decoder, tmp_path, keep_logits=True)
    # The step crosses the border where the query scale starts in one row and lies beyond it in the other.
    step = EagerStep.random(decoder, (16_381, 16_480), 5, 16_500)
    for role in (Role.VERIFY, Role.DRAFT):
        # Softmax over 16 thousand random keys: sums in another order differ by a few units of the last place each.
        compare(engines.run(role, step.inputs), expected(step, role), rtol=1e-5, atol=5e-5)


def test_ties_go_to_the_lowest_id_and_never_to_the_mask(decoder: TriModeDecoder, tmp_path: Path) -> None:
    config = decoder.config
    tied = random_decoder(config, CAPACITY)
    with torch.no_grad():
        # All rows of the vocabulary projection are equal, so all logits are.
        tied.diffusion_head.weight[:] = tied.diffusion_head.weight[:1]
    engines = compile_decoder(tied, tmp_path, keep_logits=True)
    step = EagerStep.random(tied, (3, 0), 4, CAPACITY)
    found = engines.run(Role.VERIFY, step.inputs)
    assert (found["token"] == 0).all()
    torch.testing.assert_close(found["confidence"], torch.full((2, 4), 1 / config.vocab_size), rtol=1e-4, atol=0)
    first, low, high = tied.diffusion_head.weight[0].clone(), 30, 200
    with torch.no_grad():
        tied.diffusion_head.weight.zero_()
        tied.diffusion_head.weight[MASK] = 3 * first
        tied.diffusion_head.weight[low] = tied.diffusion_head.weight[high] = first
    engines = compile_decoder(tied, tmp_path / "mask", keep_logits=True)
    found = engines.run(Role.VERIFY, step.inputs)
    is_positive = found[LOGITS][..., low] > 0
    assert is_positive.any()
    assert not is_positive.all()
    assert (found["token"][is_positive] == low).all()
    assert (found["token"][~is_positive] == 0).all()
    # The mask stays in the denominator: with it as the clear winner, nothing else is probable.
    share = torch.softmax(found[LOGITS], -1).gather(-1, found["token"][..., None])[..., 0]
    torch.testing.assert_close(found["confidence"], share, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("role", ALL_ROLES)
def test_attention_reads_the_used_part_of_the_cache_only(engines: Engines, role: Role) -> None:
    nodes = engines.model(role).graph.node
    producer = {output: node for node in nodes for output in node.output}
    attentions = [node for node in nodes if node.op_type == "Attention"]
    assert len(attentions) == 2
    for attention in attentions:
        for source in attention.input[1:3]:
            cut = producer[source]
            assert cut.op_type == "Slice"
            assert producer[cut.input[0]].op_type == "TensorScatter"
            assert producer[cut.input[2]].op_type == "ReduceMax"
    # What all layers share is computed once.
    assert sum(node.op_type == "ReduceMax" for node in nodes) == 1


def test_no_weight_is_inside_an_engine(engines: Engines) -> None:
    for role in ALL_ROLES:
        for tensor in engines.model(role).graph.initializer:
            is_external = tensor.data_location == onnx.TensorProto.EXTERNAL
            assert is_external == (tensor.name in engines.stored.spans)
            assert is_external or tensor.ByteSize() < 256


def test_an_unknown_operation_is_named() -> None:
    build = GraphBuilder()
    x = build.input("x", 2, 3, dtype=torch.float32)
    graph = build.finish(y=build.call(torch.ops.aten.erfinv.default, x))
    with pytest.raises(LoweringError, match=r"erfinv.*no ONNX converter"):
        lower_to_onnx(graph, {}, "weights")

"""FP8 and NVFP4 plans: operands reach the multiplication in the format, scales where they cost nothing, defects are found."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorrt_rtx as trt
import torch

from nemodiff_trt.build_engines.capture import capture_step
from nemodiff_trt.build_engines.compile import compile_bundle
from nemodiff_trt.build_engines.lowering import network_converters
from nemodiff_trt.build_engines.stored_weights import plan_weights
from nemodiff_trt.build_engines.targets import tensorrt_plans
from nemodiff_trt.build_engines.targets.tensorrt_builder import PlanRequest, compile_plan
from nemodiff_trt.build_engines.targets.tensorrt_constants import BAKED
from nemodiff_trt.bundle import Bundle, Encoding, RoleEngine, mapped_tensors
from nemodiff_trt.bundle.role_engine import StepProfile
from nemodiff_trt.checkpoint import AdapterSettings, write_checkpoint
from nemodiff_trt.contract import Limits
from nemodiff_trt.errors import BundleError
from nemodiff_trt.options import CompileOptions
from nemodiff_trt.passes.base import run_pipeline
from nemodiff_trt.passes.pipelines import PIPELINES
from nemodiff_trt.plan_audit import FindingCode, PlanAudit, audit_plan
from nemodiff_trt.plan_audit.engine_facts import EngineContext, engine_facts
from nemodiff_trt.plugins.network_emitter import NetworkEmitter
from nemodiff_trt.quantization.facts import QuantizationFacts
from nemodiff_trt.quantization.recipe import Recipe
from nemodiff_trt.runtime.gpu_check import check_runnable
from nemodiff_trt.vocabulary import LinearFormat, Mode, Precision, Role, Target
from support.checkpoints import random_decoder, tiny_config, write_tokenizer
from support.graphs import pass_options

LIMITS = Limits(max_batch_size=1, max_seq_len=992, block_length=32, prefill_chunk=64)
CONFIG = tiny_config(
    hidden_size=512,
    intermediate_size=1024,
    num_attention_heads=8,
    num_key_value_heads=2,
    head_dim=64,
    vocab_size=2048,
    max_position_embeddings=4096,
    block_size=32,
)
FP8, NVFP4 = LinearFormat.FP8, LinearFormat.NVFP4
NUM_LINEARS = 4 * CONFIG.num_hidden_layers


def audit(role: Role, wanted: Recipe, made: Recipe | None = None, baked: tuple[Encoding, ...] = BAKED) -> PlanAudit:
    """Audit, by the recipe `wanted`, of a plan that was compiled by the recipe `made`, with `baked` encodings inside."""
    graph = capture_step(CONFIG, torch.bfloat16, LIMITS.cache_capacity)
    options = pass_options(
        role,
        model=CONFIG,
        precision=Precision.BF16,
        cache_capacity=LIMITS.cache_capacity,
        adapter=None,
        recipe=made or wanted,
    )
    run_pipeline(graph, PIPELINES[Target.TENSORRT_RTX][role], options)
    stored = plan_weights({role: graph}, CONFIG, None)
    constants = {name: _scales(stored.shapes[name]) for name, layout in stored.layouts.items() if layout.encoding in baked}
    step = LIMITS.longest_step(role)
    profiles = (StepProfile(1, 1, step, step),)
    request = PlanRequest(profiles, LIMITS.cache_capacity, (120,), constants)
    plan = compile_plan(trt, graph, request, lambda _: None)
    names = tuple(name for name in stored.layouts if name not in constants)
    engine = RoleEngine("engines/x.plan", (), profiles, names, constants=tuple(constants))
    facts = QuantizationFacts(wanted, wanted, "")
    context = EngineContext(CONFIG, Precision.BF16, LIMITS, stored.layouts, stored.shapes, facts)
    return audit_plan(plan, engine_facts(role, engine, context))


def _scales(shape: tuple[int, ...]) -> np.ndarray:
    if not shape:
        return np.array(0.01, np.float32)
    return np.random.default_rng(0).integers(0x30, 0x77, shape, dtype=np.uint8)


@pytest.mark.parametrize("form", list(LinearFormat))
@pytest.mark.parametrize("role", [Role.DECODE, Role.VERIFY])
def test_every_decoder_linear_is_multiplied_in_the_format(role: Role, form: LinearFormat) -> None:
    found = audit(role, Recipe(form))
    assert found.warnings == ()
    (profile,) = found.profiles
    assert profile.gemms == {{FP8: "fp8", NVFP4: "fp4"}[form]: NUM_LINEARS, "bf16": 1}
    for point in profile.points:
        assert (point.copies.weight_sized, point.copies.cache_sized) == (0, 0)


def test_a_linear_that_stayed_bf16_is_found() -> None:
    for form in LinearFormat:
        made = Recipe.from_dict({"format": form, "overrides": {"encoder.layers.1.self_attn.o_proj": "none"}})
        found = audit(Role.VERIFY, Recipe(form), made)
        (finding,) = found.warnings
        assert finding.code is FindingCode.UNQUANTIZED_GEMM
        assert finding.names == ("encoder.layers.1.self_attn.o_proj.weight",)
        assert f"1 of {NUM_LINEARS}" in finding.message
        assert "bf16 x bf16" in finding.message
        # What the recipe leaves out is no defect.
        assert audit(Role.VERIFY, made).warnings == ()


def test_block_scales_as_inputs_are_found() -> None:
    found = audit(Role.VERIFY, Recipe(NVFP4), baked=(Encoding.NVFP4_WEIGHT_SCALE, Encoding.NVFP4_INPUT_SCALE))
    assert FindingCode.SCALE_SWIZZLE in found.codes


def test_inputs_in_bf16_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Quantised weights under inputs as they are: the whole weight is widened at every step."""

    def weight_only(emit: NetworkEmitter, x: Any, weight: Any, weight_scale: Any, input_scale: Any) -> Any:
        one = emit.constant(np.array(1.0, np.float32))
        wide = emit.output(emit.network.add_dequantize(weight, one, x.dtype))
        operation = emit.api.MatrixOperation
        matrix = emit.reshape(wide, (1, *tuple(weight.shape)))
        y = emit.output(emit.network.add_matrix_multiply(x, operation.NONE, matrix, operation.TRANSPOSE))
        scale = emit.cast(emit.elementwise("PROD", weight_scale, input_scale), x.dtype)
        return emit.elementwise("PROD", y, emit.reshape(scale, (1, 1, 1)))

    monkeypatch.setitem(network_converters.NETWORK_CONVERTERS, torch.ops.nemodiff.fp8_linear.default, weight_only)
    assert FindingCode.UNQUANTIZED_GEMM in audit(Role.VERIFY, Recipe(FP8)).codes


SIZES: Mapping[str, Any] = {"max_batch_size": 2, "max_seq_len": 56, "block_length": 8, "prefill_chunk": 16}
SMALL = tiny_config(head_dim=32)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint") / "c"
    write_checkpoint(folder, SMALL, random_decoder(SMALL, 1).state_dict(), AdapterSettings(4, 16.0))
    write_tokenizer(folder)
    return folder


def build(output: Path, **changes: Any) -> Bundle:
    options = {"target": Target.TENSORRT_RTX, "sm": (120,), "output": output, **SIZES, **changes}
    return compile_bundle(CompileOptions(**options))


def test_a_checkpoint_has_its_scales_inside_and_its_codes_beside(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests: list[PlanRequest] = []

    def recorded(api: Any, graph: Any, request: PlanRequest, *more: Any) -> bytes:
        requests.append(request)
        return compile_plan(api, graph, request, *more)

    monkeypatch.setattr(tensorrt_plans, "compile_plan", recorded)
    # Three prompts are enough for ranges.
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("What is 2 + 2?\nName three colours.\nWrite a loop.\n")
    bundle = build(tmp_path / "b", checkpoint=str(checkpoint), precision=Precision.NVFP4, calibration=prompts)
    manifest = bundle.manifest
    assert manifest.quantization is not None
    assert not manifest.quantization.is_rehearsal
    check_runnable(bundle)
    # Decoding has a profile of its own in the plan of verify: scales are in it once.
    decode, verify = manifest.roles[Role.DECODE], manifest.roles[Role.VERIFY]
    assert decode.file == verify.file == "engines/decode-verify.plan"
    assert [(p.max_batch, p.max_step) for p in decode.profiles] == [(2, 1), (2, 8)]
    assert len({engine.file for engine in manifest.roles.values()}) == 4
    name = "encoder.layers.0.mlp.down_proj.weight.nvfp4"
    assert name in verify.weights
    assert f"{name}.block_scales" in verify.constants
    stored = mapped_tensors(bundle.weights_path)
    for request in requests:
        assert request.weights is not None
        assert set(request.weights) >= set(verify.constants)
        assert all(np.array_equal(request.weights[each], stored[each]) for each in verify.constants)
    assert bundle.report()["audit"]["warnings"] == []


def test_a_geometry_is_a_rehearsal_for_nvfp4_and_complete_for_fp8(checkpoint: Path, tmp_path: Path) -> None:
    for precision, is_rehearsal in ((Precision.NVFP4, True), (Precision.FP8, False)):
        modes = (Mode.AR,)
        bundle = build(tmp_path / precision, checkpoint=None, config=str(checkpoint), precision=precision, modes=modes)
        assert bundle.manifest.quantization is not None
        assert bundle.manifest.quantization.is_rehearsal is is_rehearsal
        # Around FP8 products TensorRT-RTX fuses more when a single sequence has a profile of its own.
        assert {len(engine.profiles) for engine in bundle.manifest.roles.values()} == {1 if is_rehearsal else 2}
        with pytest.raises(BundleError, match="random scales" if is_rehearsal else "it has no weights"):
            check_runnable(bundle)

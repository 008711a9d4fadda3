"""Targets tensorrt-rtx and tensorrt: networks from step graphs, plans compiled without a GPU, bundles without weights."""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tensorrt_rtx as trt
import torch

from nemodiff_trt.build_engines.capture import capture_step
from nemodiff_trt.build_engines.compile import compile_bundle
from nemodiff_trt.build_engines.lowering.network import lower_to_network
from nemodiff_trt.build_engines.targets.tensorrt_builder import TimingCache
from nemodiff_trt.build_engines.targets.tensorrt_plans import step_profiles
from nemodiff_trt.bundle import Bundle
from nemodiff_trt.bundle.bind import bind_checkpoint
from nemodiff_trt.checkpoint import AdapterSettings, write_checkpoint
from nemodiff_trt.command_line import run_app
from nemodiff_trt.contract import Limits, step_contract
from nemodiff_trt.errors import AuditError, BundleError, InvalidInputError, LoweringError
from nemodiff_trt.options import AdapterForm, CompileOptions, WeightStorage
from nemodiff_trt.passes.base import run_pipeline
from nemodiff_trt.passes.graph import StepGraph
from nemodiff_trt.passes.pipelines import PIPELINES
from nemodiff_trt.plan_audit import weight_memory as weight_memory_module
from nemodiff_trt.runtime.cli.app import build_app
from nemodiff_trt.vocabulary import BUILT_MODES, Mode, Precision, Role, Target
from support.bundles import copy_bundle, rewrite_manifest
from support.checkpoints import random_checkpoint, random_decoder, tiny_config
from support.graphs import pass_options

ROLES = list(PIPELINES[Target.TENSORRT_RTX])
CAPACITY = 64
LIMITS = {"max_batch_size": 4, "max_seq_len": 56, "block_length": 8, "prefill_chunk": 16, "quadratic_block_length": 2}
# Fused attention exists for heads of 32 and more.
CONFIG = tiny_config(head_dim=32)


@pytest.fixture(scope="module")
def captured() -> StepGraph:
    return capture_step(CONFIG, torch.bfloat16, CAPACITY)


def network_of(captured: StepGraph, role: Role, weights: dict[str, np.ndarray] | None = None) -> tuple[Any, StepGraph]:
    graph = captured.copy()
    options = pass_options(role, model=CONFIG, precision=Precision.BF16, cache_capacity=CAPACITY)
    run_pipeline(graph, PIPELINES[Target.TENSORRT_RTX][role], options)
    builder = trt.Builder(trt.Logger(trt.Logger.ERROR))
    network = builder.create_network(0)
    lower_to_network(trt, network, graph, {"K": CAPACITY}, weights)
    return network, graph


def tensors(count: int, get: Any) -> dict[str, tuple[Any, tuple[int, ...]]]:
    return {get(index).name: (get(index).dtype, tuple(get(index).shape)) for index in range(count)}


@pytest.mark.parametrize("role", ROLES)
def test_a_network_has_the_tensors_of_the_contract(captured: StepGraph, role: Role) -> None:
    network, graph = network_of(captured, role)
    contract = step_contract(role, CONFIG, Precision.BF16)
    types = {"int64": trt.int64, "float32": trt.float32, "bfloat16": trt.bfloat16, "bool": trt.bool}
    extents = {"B": -1, "S": -1, "K": CAPACITY}
    sides = (
        (tensors(network.num_inputs, network.get_input), contract.inputs, {str(n.target) for n in graph.weight_nodes()}),
        (tensors(network.num_outputs, network.get_output), contract.outputs, set(graph.scratch)),
    )
    for found, specs, extra in sides:
        assert found.keys() == {spec.name for spec in specs} | extra
        for spec in specs:
            shape = tuple(extents.get(extent, extent) if isinstance(extent, str) else extent for extent in spec.shape)
            assert found[spec.name] == (types[spec.dtype], shape)


@pytest.mark.parametrize("role", ROLES)
def test_attention_is_fused_in_place_and_knows_its_lengths(captured: StepGraph, role: Role) -> None:
    network, _ = network_of(captured, role)
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    kinds = Counter(layer.type for layer in layers)
    assert kinds[trt.LayerType.ATTENTION_INPUT] == CONFIG.num_hidden_layers
    assert kinds[trt.LayerType.KV_CACHE_UPDATE] == 2 * CONFIG.num_hidden_layers
    wanted = trt.CausalMaskKind.LOWER_RIGHT if role.is_causal else trt.CausalMaskKind.NONE
    for layer in layers:
        if layer.type == trt.LayerType.ATTENTION_INPUT:
            layer.__class__ = trt.IAttentionInputLayer
            attention = layer.attention
            assert not attention.decomposable
            assert attention.causal_kind == wanted
            assert attention.key_value_lengths.dtype == trt.int32
            assert tuple(attention.key_value_lengths.shape) == (-1,)


def test_weights_are_never_transposed_by_a_layer_of_their_own(captured: StepGraph) -> None:
    network, graph = network_of(captured, Role.DRAFT)
    products = [network.get_layer(index) for index in range(network.num_layers)]
    products = [layer for layer in products if layer.type == trt.LayerType.MATRIX_MULTIPLY]
    # qkv, o, gate|up, down and two of the adapter per layer, and the head.
    assert len(products) == 6 * CONFIG.num_hidden_layers + 1
    for layer in products:
        layer.__class__ = trt.IMatrixMultiplyLayer
        assert (layer.op0, layer.op1) == (trt.MatrixOperation.NONE, trt.MatrixOperation.TRANSPOSE)
    assert all(not layout.transposed for layout in graph.weights.values())


def test_a_node_without_converter_is_named(captured: StepGraph) -> None:
    _, graph = network_of(captured, Role.VERIFY)
    graph.calls(torch.ops.aten.silu.default)[0].target = torch.ops.aten.relu.default
    network = trt.Builder(trt.Logger(trt.Logger.ERROR)).create_network(0)
    with pytest.raises(LoweringError, match=r"aten.relu.default\) has no TensorRT converter"):
        lower_to_network(trt, network, graph, {"K": CAPACITY})


def test_an_unscaled_query_is_refused(captured: StepGraph) -> None:
    network = trt.Builder(trt.Logger(trt.Logger.ERROR)).create_network(0)
    with pytest.raises(LoweringError, match="scale_queries has to run before"):
        lower_to_network(trt, network, captured.copy(), {"K": CAPACITY})


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("max_batch_size", [1, 4])
@pytest.mark.parametrize("is_split", [False, True])
def test_every_step_within_the_limits_has_one_profile(role: Role, max_batch_size: int, is_split: bool) -> None:
    limits = Limits(**{**LIMITS, "max_batch_size": max_batch_size})
    profiles = step_profiles(role, limits, is_split)
    longest = {Role.PREFILL: 16, Role.DECODE: 1, Role.QUADRATIC: 6}.get(role, 8)
    for batch in range(1, max_batch_size + 1):
        for step in range(1, longest + 1):
            assert sum(profile.accepts(batch, step) for profile in profiles) == 1
    assert not any(profile.accepts(1, longest + 1) or profile.accepts(max_batch_size + 1, 1) for profile in profiles)


@pytest.fixture(scope="module")
def geometry_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """config.json and the adapter's settings of a small model, no weights."""
    folder = tmp_path_factory.mktemp("geometry") / "small"
    source = random_checkpoint(tmp_path_factory.mktemp("source") / "small", config=CONFIG)
    (folder / "linear_spec_lora").mkdir(parents=True)
    for name in ("config.json", "linear_spec_lora/adapter_config.json"):
        (folder / name).write_bytes((source / name).read_bytes())
    return folder


@pytest.fixture(scope="module")
def checkpoint_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_checkpoint(tmp_path_factory.mktemp("weights") / "small", config=CONFIG)


def rtx_options(output: Path, **changes: Any) -> CompileOptions:
    facts = {"target": Target.TENSORRT_RTX, "sm": (120,), "precision": Precision.BF16, "output": output, **LIMITS}
    return CompileOptions(**{**facts, **changes})


@pytest.fixture(scope="module")
def unbound(geometry_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("bundles") / "unbound"
    options = rtx_options(output, config=str(geometry_dir), sm=(120, 121), modes=BUILT_MODES, strict=True)
    compile_bundle(options)
    return output


def test_a_bundle_without_weights_says_so(unbound: Path) -> None:
    manifest = Bundle.open(unbound).manifest
    assert (manifest.has_weights, manifest.sms, manifest.adapter.rank) == (False, (120, 121), 4)
    assert set(manifest.files) == {f"engines/{role}.plan" for role in manifest.roles} | {"report.json"}
    for role, engine in manifest.roles.items():
        assert len(engine.scratch) == (0 if role is Role.DECODE else CONFIG.num_hidden_layers)
        assert set(engine.weights) <= set(manifest.weights)
    for role in (Role.DRAFT, Role.QUADRATIC):
        assert set(manifest.roles[role].weights) - set(manifest.roles[Role.VERIFY].weights) == {
            f"encoder.layers.{layer}.self_attn.adapter.lora_{matrix}.weight" for layer in range(2) for matrix in "AB"
        }


def test_a_bound_bundle_has_the_weights_of_a_build_from_the_checkpoint(
    unbound: Path, checkpoint_dir: Path, tmp_path: Path
) -> None:
    bound = bind_checkpoint(unbound, checkpoint_dir, tmp_path / "bound")
    facts = {"checkpoint": str(checkpoint_dir), "modes": (Mode.SELF_SPECULATION,)}
    built = compile_bundle(rtx_options(tmp_path / "built", max_batch_size=1, **facts))
    weights = "weights/shared.safetensors"
    assert bound.manifest.has_weights
    assert bound.manifest.files[weights] == built.manifest.files[weights]
    assert bound.manifest.build_key != Bundle.open(unbound).manifest.build_key
    assert Bundle.open(bound.path).report()["bound"]["has_adapter"] is True
    # The engines are those of the first bundle, which stays as it was.
    assert Bundle.open(unbound).manifest.has_weights is False
    assert bound.manifest.files["engines/verify.plan"] == Bundle.open(unbound).manifest.files["engines/verify.plan"]


def test_binding_refuses_another_geometry_or_adapter(unbound: Path, tmp_path: Path) -> None:
    wider = random_checkpoint(tmp_path / "wider", config=tiny_config(head_dim=32, intermediate_size=128))
    with pytest.raises(InvalidInputError, match="checkpoint intermediate_size: got 128, allowed: 96"):
        bind_checkpoint(unbound, wider, tmp_path / "out")
    decoder = random_decoder(CONFIG, CAPACITY)
    write_checkpoint(tmp_path / "other", CONFIG, decoder.state_dict(), AdapterSettings(4, 8.0))
    with pytest.raises(InvalidInputError, match=r"draft adapter: got 'rank 4, scale 2', allowed: rank 4, scale 4"):
        bind_checkpoint(unbound, tmp_path / "other", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_without_adapter_is_bound_on_request_only(unbound: Path, tmp_path: Path) -> None:
    state = {name: value for name, value in random_decoder(CONFIG, CAPACITY).state_dict().items() if ".adapter." not in name}
    write_checkpoint(tmp_path / "base", CONFIG, state, None)
    with pytest.raises(InvalidInputError, match="linear_spec_lora/, or --without-adapter"):
        bind_checkpoint(unbound, tmp_path / "base", tmp_path / "out")
    bundle = bind_checkpoint(unbound, tmp_path / "base", tmp_path / "out", without_adapter=True)
    assert bundle.report()["bound"]["has_adapter"] is False


def test_embedded_weights_are_inside_the_plans(checkpoint_dir: Path, tmp_path: Path) -> None:
    facts = {"checkpoint": str(checkpoint_dir), "modes": (Mode.AR,), "max_batch_size": 1}
    shared = compile_bundle(rtx_options(tmp_path / "shared", **facts))
    embedded = compile_bundle(rtx_options(tmp_path / "embedded", weights=WeightStorage.EMBEDDED, **facts))
    for role, engine in embedded.manifest.roles.items():
        assert engine.weights == ()
        assert engine.constants == shared.manifest.roles[role].weights
    assert embedded.report()["audit"]["weight_memory"]["ratio"] > 1.9 * shared.report()["audit"]["weight_memory"]["ratio"]
    with pytest.raises(BundleError, match="weights are inside the engines"):
        bind_checkpoint(embedded.path, checkpoint_dir, tmp_path / "out")


def test_a_merged_adapter_is_a_second_output_projection(geometry_dir: Path, tmp_path: Path) -> None:
    facts = {"config": str(geometry_dir), "modes": (Mode.SELF_SPECULATION,), "max_batch_size": 1}
    options = rtx_options(tmp_path / "merged", draft_adapter=AdapterForm.MERGED, **facts)
    weights = compile_bundle(options).manifest.roles[Role.DRAFT].weights
    assert sorted(name for name in weights if "o_proj" in name) == [
        f"encoder.layers.{layer}.self_attn.o_proj_draft.weight" for layer in range(2)
    ]


def test_what_the_compiler_refuses_leaves_nothing_behind(tmp_path: Path) -> None:
    # Heads of 8 have no fused attention kernel, and without one there is no engine.
    folder = random_checkpoint(tmp_path / "narrow", config=tiny_config(head_dim=8))
    with pytest.raises(LoweringError, match=r"tensorrt_rtx .* cannot compile this step: .* not supported by a de"):
        compile_bundle(rtx_options(tmp_path / "out", checkpoint=str(folder), modes=(Mode.AR,)))
    assert {path.name for path in tmp_path.iterdir()} == {"narrow"}


class RecordingConfig:
    """Timing cache calls of a builder configuration; every compilation measures one kernel more."""

    def create_timing_cache(self, content: bytes) -> bytes:
        return content

    def set_timing_cache(self, content: bytes, ignore_mismatch: bool) -> None:
        assert not ignore_mismatch
        self.content = content

    def get_timing_cache(self) -> SimpleNamespace:
        return SimpleNamespace(serialize=lambda: self.content + b"k")


def test_measurements_of_one_plan_serve_the_next() -> None:
    timings, seen = TimingCache(), []
    for _ in range(3):
        config = RecordingConfig()
        timings.lend(config)
        seen.append(config.content)
        timings.take_back(config)
    assert seen == [b"", b"k", b"kk"]
    # The calls exist in the API; TensorRT-RTX answers them without doing anything.
    names = [name for name in vars(RecordingConfig) if "timing" in name]
    assert all(hasattr(trt.IBuilderConfig, name) for name in names)


def test_a_missing_compiler_is_named_before_anything_else(
    geometry_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    monkeypatch.setattr("nemodiff_trt.build_engines.compile.open_source", None)
    with pytest.raises(InvalidInputError, match=r"target: got 'tensorrt-rtx', .* pip install 'nemodiff_trt\[rtx\]'"):
        compile_bundle(rtx_options(tmp_path / "out", config=str(geometry_dir)))
    assert not (tmp_path / "out").exists()


def test_inspect_shows_the_audit_and_strict_fails_on_its_warnings(
    unbound: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_app(build_app(), "nemodiff", ["inspect", str(unbound), "--json", "--strict"]) == 0
    facts = json.loads(capsys.readouterr().out)
    audit = facts["audit"]
    assert audit == facts["report"]["audit"]
    assert audit["warnings"] == []
    assert audit["roles"].keys() == set(ROLES)
    # The model is so small that its rotary tables, which a checkpoint does not store, stand out.
    assert 1 < audit["weight_memory"]["ratio"] < 1.10
    memory = facts["predicted_memory"]["1"]
    parts = ("weights", "engines", "cache", "step", "scratch", "activations")
    assert memory["total"] == sum(memory[part] for part in parts)
    assert all(memory[part] > 0 for part in parts)
    assert run_app(build_app(), "nemodiff", ["inspect", "--bundle", str(unbound)]) == 0
    assert "no findings" in capsys.readouterr().out
    # A plan that says nothing of itself is a warning.
    broken = copy_bundle(unbound, tmp_path / "broken")
    (broken / "engines" / "verify.plan").write_bytes(b"no plan")
    rewrite_manifest(broken)
    assert run_app(build_app(), "nemodiff", ["inspect", str(broken), "--strict"]) == 1
    output, error = capsys.readouterr()
    assert "unknown_plan_format" in output
    assert error.count("\n") == 1
    assert "1 warnings, the first: verify: unknown_plan_format" in error


def test_inspect_wants_one_bundle(unbound: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_app(build_app(), "nemodiff", ["inspect"]) == 2
    assert run_app(build_app(), "nemodiff", ["inspect", str(unbound), "--bundle", str(unbound)]) == 2
    assert "the folder of one bundle" in capsys.readouterr().err


def test_a_strict_build_fails_on_a_warning(geometry_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weight_memory_module, "MAX_RATIO", 1.0)
    facts = {"config": str(geometry_dir), "modes": (Mode.AR,), "max_batch_size": 1}
    with pytest.raises(AuditError, match="1 findings, the first: duplicated_weights: the roles keep"):
        compile_bundle(rtx_options(tmp_path / "out", strict=True, **facts))
    assert list(tmp_path.iterdir()) == []
    assert compile_bundle(rtx_options(tmp_path / "out", **facts)).report()["audit"]["warnings"] != []


def test_the_commands_bind_and_generate(
    unbound: Path, checkpoint_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bound = tmp_path / "bound"
    arguments = ["bind", "--bundle", str(unbound), "--checkpoint", str(checkpoint_dir), "--output", str(bound), "--json"]
    assert run_app(build_app(), "nemodiff", arguments) == 0
    assert json.loads(capsys.readouterr().out)["bundle"] == str(bound)
    for bundle, reason in ((unbound, "nemodiff bind"), (bound, "GPU")):
        assert run_app(build_app(), "nemodiff", ["generate", "--bundle", str(bundle), "--prompt", "a"]) == 1
        output, error = capsys.readouterr()
        assert output == ""
        assert error.count("\n") == 1
        assert reason in error
    assert "SM120, SM121" in error

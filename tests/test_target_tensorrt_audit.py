"""Defects put into our own lowering are found by the audit of what the compiler made of it, each under its own code."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import tensorrt_rtx as trt
import torch

from nemodiff_trt.build_engines.capture import capture_step
from nemodiff_trt.build_engines.lowering import network_converters
from nemodiff_trt.build_engines.stored_weights import plan_weights
from nemodiff_trt.build_engines.targets.tensorrt_builder import PlanRequest, compile_plan
from nemodiff_trt.build_engines.targets.tensorrt_plans import step_profiles
from nemodiff_trt.bundle import RoleEngine, WeightLayout
from nemodiff_trt.contract import ENGINE_FLOAT, Limits
from nemodiff_trt.passes.base import Pass, run_pipeline
from nemodiff_trt.passes.expose_queries import expose_queries
from nemodiff_trt.passes.graph import StepGraph
from nemodiff_trt.passes.pipelines import PIPELINES
from nemodiff_trt.plan_audit import FindingCode, PlanAudit, audit_plan
from nemodiff_trt.plan_audit.engine_facts import EngineContext, engine_facts
from nemodiff_trt.plan_audit.weight_memory import weight_memory
from nemodiff_trt.plugins.attention import network_form
from nemodiff_trt.plugins.network_emitter import NetworkEmitter
from nemodiff_trt.vocabulary import Precision, Role, Target
from support.checkpoints import tiny_config
from support.graphs import ADAPTER, pass_options

# Large enough that copies of caches and weights stand out, small enough to compile in a fraction of a second. Nothing has data.
LIMITS = Limits(max_batch_size=1, max_seq_len=992, block_length=32, prefill_chunk=64, quadratic_block_length=5)
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
_LINEAR = torch.ops.aten.linear.default


Audit = Callable[..., PlanAudit]


def capture(precision: Precision) -> StepGraph:
    return capture_step(CONFIG, getattr(torch, ENGINE_FLOAT[precision]), LIMITS.cache_capacity)


@pytest.fixture(scope="module")
def captured() -> StepGraph:
    """The step in bf16. Shared: copy it before changing it."""
    return capture(Precision.BF16)


@pytest.fixture
def audit(captured: StepGraph) -> Audit:
    """Audit of a plan compiled from a role's pipeline in bf16, or `without` one of its passes."""
    return lambda role, without=None: audit_of(captured.copy(), role, without=without)


def audit_of(
    graph: StepGraph, role: Role, precision: Precision = Precision.BF16, without: Pass | None = None, limits: Limits = LIMITS
) -> PlanAudit:
    """Audit of a plan of `role` that is said to be bf16, compiled from a captured step and without one pass of its pipeline."""
    stages = tuple(stage for stage in PIPELINES[Target.TENSORRT_RTX][role] if stage.run is not without)
    run_pipeline(graph, stages, pass_options(role, model=CONFIG, precision=precision, cache_capacity=limits.cache_capacity))
    profiles = step_profiles(role, limits, is_split=False)
    plan = compile_plan(trt, graph, PlanRequest(profiles, limits.cache_capacity, (120,)), lambda _: None)
    stored = plan_weights({role: graph}, CONFIG, None)
    engine = RoleEngine("engines/x.plan", (), profiles, tuple(stored.layouts))
    context = EngineContext(CONFIG, Precision.BF16, limits, stored.layouts, stored.shapes)
    return audit_plan(plan, engine_facts(role, engine, context))


@pytest.mark.parametrize("role", list(PIPELINES[Target.TENSORRT_RTX]))
def test_what_we_ship_has_no_warning(audit: Audit, role: Role) -> None:
    found = audit(role)
    assert found.warnings == ()
    for profile in found.profiles:
        assert sum(profile.attention.values()) == CONFIG.num_hidden_layers
        assert set(profile.gemms) == {"bf16"}
        for point in profile.points:
            assert (point.copies.weight_sized, point.copies.cache_sized) == (0, 0)


@pytest.mark.parametrize("role", [Role.DECODE, Role.VERIFY, Role.DENOISE, Role.DRAFT])
def test_a_plan_for_several_sequences_launches_no_more_than_one_for_a_single_one(captured: StepGraph, role: Role) -> None:
    single = audit_of(captured.copy(), role)
    several = audit_of(captured.copy(), role, limits=dataclasses.replace(LIMITS, max_batch_size=4))
    assert several.warnings == ()
    (alone,), (together,) = single.profiles, several.profiles
    # A kernel cut in two in every layer would be a launch or two for each; the decision behind them may differ by one.
    assert together.launches <= alone.launches + 1


def test_the_cache_is_copied_without_the_query_boundary(audit: Audit) -> None:
    assert audit(Role.VERIFY, without=expose_queries).codes == {FindingCode.CACHE_COPY}


def test_weights_are_copied_by_a_transposition_of_their_own(audit: Audit, monkeypatch: pytest.MonkeyPatch) -> None:
    def linear(emit: NetworkEmitter, x: Any, weight: Any) -> Any:
        turned = emit.network.add_shuffle(weight)
        turned.first_transpose = (1, 0)
        turned.reshape_dims = (1, weight.shape[1], weight.shape[0])
        operation = emit.api.MatrixOperation.NONE
        return emit.output(emit.network.add_matrix_multiply(x, operation, emit.output(turned), operation))

    monkeypatch.setitem(network_converters.NETWORK_CONVERTERS, _LINEAR, linear)
    assert audit(Role.DECODE).codes == {FindingCode.WEIGHT_COPY}


def without_lengths(emit: NetworkEmitter, *tensors: Any) -> None:
    """In place of the lengths: none."""


def test_attention_without_lengths_covers_the_whole_cache(audit: Audit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network_form, "attended_lengths", without_lengths)
    assert FindingCode.WHOLE_CACHE_ATTENTION in audit(Role.DENOISE).codes


class Decomposable:
    """A network whose attention layers may be taken apart."""

    def __init__(self, network: Any) -> None:
        self._network = network

    def __getattr__(self, name: str) -> Any:
        return getattr(self._network, name)

    def add_attention_v2(self, *arguments: Any) -> Any:
        return _Allowed(self._network.add_attention_v2(*arguments))


class _Allowed:
    """An attention layer that keeps `decomposable` on."""

    def __init__(self, layer: Any) -> None:
        object.__setattr__(self, "layer", layer)
        layer.decomposable = True

    def __getattr__(self, name: str) -> Any:
        return getattr(self.layer, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name != "decomposable":
            setattr(self.layer, name, value)


def test_fp32_has_no_fused_attention_and_fp32_products(monkeypatch: pytest.MonkeyPatch) -> None:
    convert = network_form.attention_network

    def decomposed(emit: NetworkEmitter, *arguments: Any) -> Any:
        network, emit.network = emit.network, Decomposable(emit.network)
        try:
            return convert(emit, *arguments)
        finally:
            emit.network = network

    monkeypatch.setitem(network_converters.NETWORK_CONVERTERS, torch.ops.nemodiff.attention.default, decomposed)
    found = audit_of(capture(Precision.FP32), Role.VERIFY, Precision.FP32)
    assert {FindingCode.UNFUSED_ATTENTION, FindingCode.FP32_GEMM} <= found.codes


def stored_roles(
    captured: StepGraph, merge_everything: bool
) -> tuple[dict[Role, RoleEngine], Mapping[str, WeightLayout], dict[str, Any]]:
    """Engines of verify and draft; the draft with a low-rank branch, or with a whole set of weights of its own."""
    graphs = {}
    for role in (Role.VERIFY, Role.DRAFT):
        graphs[role] = captured.copy()
        run_pipeline(
            graphs[role], PIPELINES[Target.TENSORRT_RTX][role], pass_options(role, model=CONFIG, precision=Precision.BF16)
        )
    stored = plan_weights(graphs, CONFIG, ADAPTER)
    names = {role: tuple(str(node.target) for node in graph.weight_nodes()) for role, graph in graphs.items()}
    layouts, shapes = dict(stored.layouts), dict(stored.shapes)
    if merge_everything:
        own = {name: f"{name}.draft" for name in names[Role.VERIFY]}
        layouts |= {copy: layouts[name] for name, copy in own.items()}
        shapes |= {copy: shapes[name] for name, copy in own.items()}
        names[Role.DRAFT] = tuple(own.values())
    roles = {role: RoleEngine(f"engines/{role}.plan", weights=names[role]) for role in names}
    return roles, layouts, shapes


def test_an_adapter_merged_into_a_second_set_of_weights(captured: StepGraph) -> None:
    shared = weight_memory(CONFIG, Precision.BF16, *stored_roles(captured, merge_everything=False))
    assert shared.findings() == ()
    assert 1 < shared.ratio < 1.10
    doubled = weight_memory(CONFIG, Precision.BF16, *stored_roles(captured, merge_everything=True))
    assert [finding.code for finding in doubled.findings()] == [FindingCode.DUPLICATED_WEIGHTS]
    assert doubled.ratio == pytest.approx(2, rel=0.2)


def test_weights_inside_every_plan_are_as_many_copies(captured: StepGraph) -> None:
    roles, layouts, shapes = stored_roles(captured, merge_everything=False)
    inside = {role: dataclasses.replace(engine, weights=(), constants=engine.weights) for role, engine in roles.items()}
    assert weight_memory(CONFIG, Precision.BF16, inside, layouts, shapes).ratio > 1.9

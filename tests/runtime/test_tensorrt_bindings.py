"""Binding plans of TensorRT steps: complete, aligned, without overlaps, within what the session allocates."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nemodiff_trt import contract
from nemodiff_trt.bundle import FileEntry, Manifest, RoleEngine, StepProfile, WeightLayout
from nemodiff_trt.contract import Limits, TensorSpec, scaled_query, step_contract
from nemodiff_trt.errors import BundleError
from nemodiff_trt.options import WeightStorage
from nemodiff_trt.runtime.step_checks import role_steps
from nemodiff_trt.runtime.tensorrt_bindings import (
    ALIGNMENT_BYTES,
    Buffer,
    StepKey,
    TensorBinding,
    buffer_bytes,
    choose_profile,
    largest_steps,
    launched_step,
    place_cache,
    place_weights,
    plan_step,
    predict_memory,
    uncovered_shape,
)
from nemodiff_trt.vocabulary import Mode, Precision, Role, Target
from support.checkpoints import tiny_config

ROLES = (Role.PREFILL, Role.DECODE, Role.VERIFY, Role.DENOISE, Role.DRAFT)
SHAPES = {"norm": (48,), "head": (400, 48), "table": (136, 8), "unused": (4, 4)}
PLAN_BYTES = 1000


def make_manifest(limits: Limits, **changes: Any) -> Manifest:
    """A manifest with a plan per role, two small weights of odd sizes, and one that no role binds."""
    config = tiny_config()
    query = ("B", config.num_attention_heads, "S", config.head_dim)
    scratch = tuple(TensorSpec(scaled_query(layer), "bfloat16", query) for layer in range(config.num_hidden_layers))
    roles = {}
    for role in ROLES:
        longest = role_steps(role, limits)[-1]
        profiles = (StepProfile(1, limits.max_batch_size, 1, longest), StepProfile(1, 1, 1, longest))
        bound = ("norm", "head") if role is Role.PREFILL else ("norm", "head", "table")
        roles[role] = RoleEngine(f"{role}.plan", (), profiles, bound, scratch)
    facts: dict[str, Any] = {
        "model": config,
        "target": Target.TENSORRT_RTX,
        "precision": Precision.BF16,
        "modes": (Mode.AR,),
        "limits": limits,
        "keep_logits": False,
        "adapter": None,
        "roles": roles,
        "operators": {},
        "weights": {name: WeightLayout((name,), False, "float32" if name == "table" else "bfloat16") for name in SHAPES},
        "weight_shapes": SHAPES,
        "build_key": "",
        "tool_versions": {},
        "sms": (120,),
        "files": {f"{role}.plan": FileEntry("", PLAN_BYTES) for role in ROLES},
    }
    return Manifest(**{**facts, **changes})


LIMITS = Limits(4, 128, 8, 16)
QUICK = settings(deadline=None, max_examples=100)


@st.composite
def any_limits(draw: st.DrawFn) -> Limits:
    block = draw(st.integers(2, 40))
    chunk = draw(st.integers(1, 300))
    return Limits(draw(st.integers(1, 9)), draw(st.integers(max(block, chunk), 600)), block, chunk)


@st.composite
def any_step(draw: st.DrawFn) -> tuple[Manifest, StepKey]:
    manifest = make_manifest(
        draw(any_limits()),
        precision=draw(st.sampled_from([Precision.FP32, Precision.FP16, Precision.BF16, Precision.NVFP4])),
        keep_logits=draw(st.booleans()),
    )
    role = draw(st.sampled_from(ROLES))
    batch = draw(st.integers(1, manifest.limits.max_batch_size))
    return manifest, StepKey(role, batch, draw(st.sampled_from(list(role_steps(role, manifest.limits)))))


def overlaps(bindings: tuple[TensorBinding, ...]) -> list[tuple[str, str]]:
    return [
        (one.name, other.name)
        for one, other in itertools.combinations(bindings, 2)
        if one.offset < other.end and other.offset < one.end
    ]


class TestPlan:
    @QUICK
    @given(any_step())
    def test_every_tensor_of_the_engine_is_bound_once_in_its_shape(self, given_step: tuple[Manifest, StepKey]) -> None:
        manifest, key = given_step
        engine, plan = manifest.roles[key.role], plan_step(manifest, key)
        tensors = step_contract(key.role, manifest.model, manifest.precision, manifest.keep_logits)
        names = [spec.name for spec in (*tensors.inputs, *tensors.outputs, *engine.scratch)] + list(engine.weights)
        assert sorted(binding.name for binding in plan.bindings) == sorted(names)
        sizes = {"B": key.batch, "S": key.step, "K": manifest.limits.cache_capacity}
        for spec in (*tensors.inputs, *tensors.outputs, *engine.scratch):
            binding = plan.binding(spec.name)
            assert binding.shape == tuple(sizes.get(axis, axis) for axis in spec.shape)  # type: ignore[arg-type]
            assert binding.dtype == spec.dtype
            assert binding.is_input == (spec in tensors.inputs)
        for name in engine.weights:
            assert plan.binding(name).shape == SHAPES[name]

    @QUICK
    @given(any_step())
    def test_present_is_past(self, given_step: tuple[Manifest, StepKey]) -> None:
        manifest, key = given_step
        plan = plan_step(manifest, key)
        for spec in step_contract(key.role, manifest.model, manifest.precision).outputs:
            if spec.alias_of is not None:
                past, present = plan.binding(spec.alias_of), plan.binding(spec.name)
                assert dataclasses.replace(past, name=spec.name, is_input=False) == present
                assert past.buffer is Buffer.CACHE

    @QUICK
    @given(any_step())
    def test_nothing_overlaps_but_scratch_and_aliases(self, given_step: tuple[Manifest, StepKey]) -> None:
        manifest, key = given_step
        plan = plan_step(manifest, key)
        for buffer in set(Buffer) - {Buffer.SCRATCH}:
            assert overlaps(tuple(b for b in plan.within(buffer) if b.is_input or buffer is not Buffer.CACHE)) == []
        assert all(binding.offset % ALIGNMENT_BYTES == 0 for binding in plan.bindings)

    @QUICK
    @given(any_step())
    def test_what_is_allocated_is_large_enough(self, given_step: tuple[Manifest, StepKey]) -> None:
        manifest, key = given_step
        plan, memory = plan_step(manifest, key), predict_memory(manifest, key.batch)
        largest = largest_steps(manifest)
        for buffer in (Buffer.STEP_INPUT, Buffer.STEP_OUTPUT, Buffer.SCRATCH):
            assert plan.num_bytes(buffer) <= max(each.num_bytes(buffer) for each in largest)
        assert plan.num_bytes(Buffer.SCRATCH) == max(binding.num_bytes for binding in plan.within(Buffer.SCRATCH))
        assert plan.num_bytes(Buffer.SCRATCH) <= memory.scratch
        assert plan.num_bytes(Buffer.CACHE) == memory.cache == buffer_bytes(place_cache(manifest, key.batch))
        assert plan.num_bytes(Buffer.WEIGHTS) <= memory.weights

    @QUICK
    @given(any_step())
    def test_results_lie_together(self, given_step: tuple[Manifest, StepKey]) -> None:
        plan = plan_step(*given_step)
        logits = (contract.LOGITS,) if given_step[0].keep_logits else ()
        assert plan.result_names == (contract.TOKEN, contract.CONFIDENCE, *logits)
        assert all(plan.binding(name).end <= plan.result_bytes for name in plan.result_names)

    @QUICK
    @given(any_step(), any_step())
    def test_keys_are_equal_for_equal_shapes_only(self, one: tuple[Manifest, StepKey], other: tuple[Manifest, StepKey]) -> None:
        keys = [dataclasses.replace(one[1]), one[1], other[1]]
        assert keys[0] == keys[1]
        assert hash(keys[0]) == hash(keys[1])
        assert (one[1] == other[1]) == (dataclasses.astuple(one[1]) == dataclasses.astuple(other[1]))

    def test_roles_bind_the_same_places_of_the_weights(self) -> None:
        manifest = make_manifest(LIMITS)
        places = {binding.name: binding for binding in place_weights(manifest)}
        assert set(places) == {"norm", "head", "table"}
        for role in ROLES:
            plan = plan_step(manifest, StepKey(role, 1, 1))
            assert all(places[binding.name] == binding for binding in plan.within(Buffer.WEIGHTS))

    def test_a_weight_that_is_not_stored_is_named(self) -> None:
        manifest = make_manifest(LIMITS, weights={"norm": WeightLayout(("norm",), False, "bfloat16")})
        with pytest.raises(BundleError, match=r"prefill\.plan: its weight head is not stored"):
            plan_step(manifest, StepKey(Role.PREFILL, 1, 1))

    @pytest.mark.parametrize("spec", [TensorSpec("odd", "bfloat16", ("B", "Z")), TensorSpec("odd", "float5", ("B",))])
    def test_an_unknown_axis_or_dtype_is_named(self, spec: TensorSpec) -> None:
        manifest = make_manifest(LIMITS)
        engine = dataclasses.replace(manifest.roles[Role.DRAFT], scratch=(spec,))
        manifest = dataclasses.replace(manifest, roles={Role.DRAFT: engine})
        with pytest.raises(BundleError, match=r"tensor odd: axis or dtype '(Z|float5)' is unknown"):
            plan_step(manifest, StepKey(Role.DRAFT, 1, 1))


@st.composite
def any_profiles(draw: st.DrawFn) -> tuple[StepProfile, ...]:
    sizes = st.integers(1, 10)
    ranges = st.tuples(sizes, sizes).map(sorted)
    count = draw(st.integers(1, 5))
    return tuple(StepProfile(*draw(ranges), *draw(ranges)) for _ in range(count))


class TestProfiles:
    @QUICK
    @given(any_profiles(), st.integers(1, 10), st.integers(1, 10))
    def test_the_narrowest_that_accepts(self, profiles: tuple[StepProfile, ...], batch: int, step: int) -> None:
        def width(profile: StepProfile) -> int:
            return (profile.max_batch - profile.min_batch + 1) * (profile.max_step - profile.min_step + 1)

        engine = RoleEngine("a.plan", profiles=profiles)
        accepting = [profile for profile in profiles if profile.accepts(batch, step)]
        if not accepting:
            with pytest.raises(BundleError, match=f"no profile takes {batch} rows of {step} tokens"):
                choose_profile(engine, batch, step)
            return
        chosen = profiles[choose_profile(engine, batch, step)]
        assert chosen.accepts(batch, step)
        assert width(chosen) == min(map(width, accepting))

    def test_an_engine_without_profiles_has_one_for_everything(self) -> None:
        engine = RoleEngine("a.plan")
        assert choose_profile(engine, 7, 7) == 0
        assert uncovered_shape(engine, Role.VERIFY, LIMITS) is None

    @QUICK
    @given(any_profiles(), st.sampled_from([Role.PREFILL, Role.DECODE, Role.VERIFY]))
    def test_holes_are_found(self, profiles: tuple[StepProfile, ...], role: Role) -> None:
        limits = Limits(6, 20, 5, 9)
        shapes = itertools.product(range(1, limits.max_batch_size + 1), role_steps(role, limits))
        holes = [shape for shape in shapes if not any(profile.accepts(*shape) for profile in profiles)]
        found = uncovered_shape(RoleEngine("a.plan", profiles=profiles), role, limits)
        assert found in holes if holes else found is None


class TestPrefillSteps:
    @QUICK
    @given(any_limits(), st.data())
    def test_padded_steps_are_few_long_enough_and_fit(self, limits: Limits, data: st.DataObject) -> None:
        step = data.draw(st.integers(1, limits.prefill_chunk))
        room = data.draw(st.integers(step, limits.cache_capacity))
        launched = launched_step(Role.PREFILL, step, room, limits)
        assert step <= launched <= min(room, limits.prefill_chunk)
        assert launched in {step, 16, 32, 64, 128, 256, limits.prefill_chunk}

    def test_lengths_share_a_step(self) -> None:
        limits = Limits(1, 512, 8, 256)
        lengths = {launched_step(Role.PREFILL, step, 512, limits) for step in range(1, 257)}
        assert lengths == {16, 32, 64, 128, 256}

    def test_without_room_a_step_is_as_long_as_its_tokens(self) -> None:
        assert launched_step(Role.PREFILL, 9, 15, LIMITS) == 9

    @pytest.mark.parametrize("role", [role for role in ROLES if role is not Role.PREFILL])
    def test_other_roles_are_never_padded(self, role: Role) -> None:
        assert [launched_step(role, step, 100, LIMITS) for step in range(1, 9)] == list(range(1, 9))


class TestMemory:
    def test_parts(self) -> None:
        manifest = make_manifest(LIMITS)
        memory = predict_memory(manifest, 2)
        # norm 96 and head 38,400 bytes in bf16, table 4,352 in fp32; each starts at a multiple of 256.
        assert memory.weights == 256 + 38_400 + 4_352
        assert memory.engines == len(ROLES) * PLAN_BYTES
        assert memory.cache == 2 * 2 * (2 * 2 * 136 * 16) * 2
        # 4 rows of 16 ids, their lengths and last indices; outputs of 4 rows of 8 tokens.
        assert memory.step == (512 + 256 + 32) + (256 + 128)
        assert memory.scratch == 4 * 4 * 16 * 16 * 2
        assert memory.total == sum(getattr(memory, field.name) for field in dataclasses.fields(memory))

    def test_embedded_weights_are_counted_with_the_engines(self) -> None:
        roles = {role: dataclasses.replace(engine, weights=()) for role, engine in make_manifest(LIMITS).roles.items()}
        memory = predict_memory(make_manifest(LIMITS, roles=roles, weight_storage=WeightStorage.EMBEDDED), 1)
        assert memory.weights == 0

    def test_an_engine_of_two_roles_is_counted_once(self) -> None:
        roles = dict(make_manifest(LIMITS).roles)
        roles[Role.DECODE] = dataclasses.replace(roles[Role.DECODE], file="verify.plan")
        assert predict_memory(make_manifest(LIMITS, roles=roles), 1).engines == (len(ROLES) - 1) * PLAN_BYTES

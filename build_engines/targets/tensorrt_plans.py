"""Targets tensorrt-rtx and tensorrt: plans of all roles over one weight file, each audited before it is published."""

from __future__ import annotations

import importlib
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from nemodiff_trt.build_engines.targets.build_target import BuildInput, BuiltEngines
from nemodiff_trt.build_engines.targets.tensorrt_builder import PlanRequest, TimingCache, compile_plan
from nemodiff_trt.build_engines.targets.tensorrt_constants import BAKED, plan_constants
from nemodiff_trt.bundle import Encoding, RoleEngine, StepProfile
from nemodiff_trt.bundle.manifest import ENGINES_DIR
from nemodiff_trt.contract import Limits, TensorSpec
from nemodiff_trt.errors import InvalidInputError
from nemodiff_trt.passes.graph import NODE_VALUE, StepGraph
from nemodiff_trt.plan_audit.bundle_audit import audit_engines
from nemodiff_trt.plan_audit.engine_facts import EngineContext, engine_facts
from nemodiff_trt.plan_audit.in_background import BackgroundAudits
from nemodiff_trt.vocabulary import Role, Target

_API_MODULES = {Target.TENSORRT_RTX: "tensorrt_rtx", Target.TENSORRT: "tensorrt"}
_INSTALL_HINTS = {
    Target.TENSORRT_RTX: "installed: pip install 'nemodiff_trt[rtx]'",
    Target.TENSORRT: "installed: the tensorrt package with its libraries, on a machine with the GPU to compile for",
}


def build_tensorrt(build: BuildInput) -> BuiltEngines:
    """Compile and audit the plans of all roles.

    Raises:
        InvalidInputError: the compiler is not installed.
        LoweringError: a graph cannot be compiled.
    """
    api = import_api(build.options.target)
    folder = build.bundle_dir / ENGINES_DIR
    folder.mkdir()
    constants = plan_constants(build)
    timings = TimingCache() if build.options.target is Target.TENSORRT else None
    plans = plan_groups(build)
    options, stored = build.options, build.stored
    context = EngineContext(build.model, options.precision, options.limits, stored.layouts, stored.shapes, build.quantization)
    engines: dict[Role, RoleEngine] = {}
    seconds: dict[str, float] = {}
    # A plan is audited while the next one compiles, which takes one core.
    with BackgroundAudits() as audits:
        with build.clock.stage("compile plans", total=100 * len(plans)):
            for done, group in enumerate(plans):
                started = time.perf_counter()
                source = PlanSource(build.graphs[group[-1]], constants.tensors, timings)
                found = _write_plan(api, build, group, source, done)
                engines |= found
                first = next(role for role in build.graphs if role in group)
                seconds[found[first].file] = round(time.perf_counter() - started, 3)
                audits.start(build.bundle_dir / found[first].file, engine_facts(first, found[first], context))
        engines = {role: engines[role] for role in build.graphs}
        with build.clock.stage("audit plans", total=len(engines)):
            audit = audit_engines(
                lambda _, engine: audits.result(build.bundle_dir / engine.file),
                engines,
                context,
                build.clock.listener.advance,
            )
    report = {
        "engines": {
            file: {
                "roles": [role for role, engine in engines.items() if engine.file == file],
                "num_bytes": (build.bundle_dir / file).stat().st_size,
                "seconds": spent,
            }
            for file, spent in seconds.items()
        },
        "audit": audit.to_dict(),
    }
    sms = build.options.sm or _present_sm()
    return BuiltEngines(engines, report, audit.warnings, sms, constants.is_random)


def plan_groups(build: BuildInput) -> list[tuple[Role, ...]]:
    """Roles that share a plan, the one whose graph serves all of them last.

    A plan that holds block scales holds them once for all its profiles. Decoding is verifying one token: with a profile of its
    own it gets the kernels of one row.
    """
    roles = list(build.graphs)
    has_scales = not _encodings(build, build.graphs[roles[0]]).isdisjoint(BAKED)
    if not (has_scales and {Role.DECODE, Role.VERIFY} <= set(roles)):
        return [(role,) for role in roles]
    return [(Role.DECODE, Role.VERIFY) if role is Role.VERIFY else (role,) for role in roles if role is not Role.DECODE]


def _present_sm() -> tuple[int, ...]:
    """Compute capability of the GPU that TensorRT compiled for, which is the first one CUDA sees."""
    major, minor = torch.cuda.get_device_capability(0)
    return (10 * major + minor,)


def import_api(target: Target) -> Any:
    """The Python module of the compiler.

    Raises:
        InvalidInputError: it is not installed.
    """
    try:
        return importlib.import_module(_API_MODULES[target])
    except ImportError as error:
        raise InvalidInputError("target", str(target), f"a compiler that is {_INSTALL_HINTS[target]} ({error})") from error


def import_plugins(target: Target) -> None:
    """Import what plugins need: the submodule of the compiler's API, and the compiler of kernels.

    Raises:
        InvalidInputError: one of them is not installed.
    """
    for module, hint in (
        (f"{_API_MODULES[target]}.plugin", "a newer release"),
        ("triton", "pip install 'nemodiff_trt[kernels]'"),
    ):
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise InvalidInputError("plugins", True, f"off without {module}, which is not installed: {hint}") from error


def splits_batches(target: Target, encodings: Iterable[Encoding]) -> bool:
    """Whether a single sequence gets a profile of its own in a plan whose weights are stored so.

    TensorRT tunes kernels for the sizes of a profile. TensorRT-RTX leaves that to the GPU, which compiles kernels for the sizes
    that come: a second program would launch the same products and take as long to compile as the first. Around FP8 products,
    though, it fuses less where a batch may be one or more; rows [B*S,N] help most roles there, but not a draft of many layers.
    """
    return target is not Target.TENSORRT_RTX or Encoding.FP8 in encodings


def step_profiles(role: Role, limits: Limits, is_split: bool) -> tuple[StepProfile, ...]:
    """Profiles over every batch and step of the role: one, or one for a single sequence and one for larger batches."""
    largest = limits.max_batch_size
    batches = [(1, 1), (2, largest)] if is_split and largest > 1 else [(1, largest)]
    return tuple(StepProfile(low, high, 1, limits.longest_step(role)) for low, high in batches)


@dataclass(frozen=True, slots=True)
class PlanSource:
    """What one plan is compiled from: its graph, tensors to embed if any, and measurements of the plans before it."""

    graph: StepGraph
    weights: Mapping[str, np.ndarray]
    timings: TimingCache | None


def _write_plan(api: Any, build: BuildInput, group: tuple[Role, ...], source: PlanSource, done: int) -> dict[Role, RoleEngine]:
    """Compile the plan of a group of roles; `done` plans are finished."""
    limits, graph = build.options.limits, source.graph
    is_split = splits_batches(build.options.target, _encodings(build, graph))
    profiles = tuple(profile for role in group for profile in step_profiles(role, limits, is_split))
    plugin_sm = _present_sm()[0] if build.options.plugins else None
    request = PlanRequest(profiles, limits.cache_capacity, build.options.sm, source.weights, plugin_sm)

    def on_share(share: float) -> None:
        build.clock.listener.advance(100 * done + int(100 * share))

    plan = compile_plan(api, graph, request, on_share, source.timings)
    file = f"{ENGINES_DIR}/{'-'.join(group)}.plan"
    (build.bundle_dir / file).write_bytes(plan)
    names = sorted(str(node.target) for node in graph.weight_nodes())
    bound = tuple(name for name in names if name not in source.weights)
    constants = tuple(name for name in names if name in source.weights)
    scratch = _scratch(build, graph)
    return {
        role: RoleEngine(file, tuple(other for other in group if other is not role), profiles, bound, scratch, constants)
        for role in group
    }


def _encodings(build: BuildInput, graph: StepGraph) -> set[Encoding]:
    return {build.stored.layouts[str(node.target)].encoding for node in graph.weight_nodes()}


def _scratch(build: BuildInput, graph: StepGraph) -> tuple[TensorSpec, ...]:
    """Outputs beyond the contract, as the network shapes them: heads before tokens."""
    model = build.model
    shape = ("B", model.num_attention_heads, "S", model.head_dim)
    outputs = graph.outputs
    return tuple(
        TensorSpec(name, str(outputs[name].meta[NODE_VALUE].dtype).removeprefix("torch."), shape) for name in graph.scratch
    )

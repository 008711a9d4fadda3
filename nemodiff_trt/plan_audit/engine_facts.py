"""Facts for the audit of one engine, from what the manifest of its bundle says."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from nemodiff_trt.bundle import Encoding, Manifest, RoleEngine, WeightLayout
from nemodiff_trt.config import ModelConfig
from nemodiff_trt.contract import ENGINE_FLOAT, ITEM_BYTES, Limits
from nemodiff_trt.plan_audit.facts import AuditPoint, CacheFact, ProfileRange, StepFacts, WeightFact, is_row_table
from nemodiff_trt.quantization.facts import QuantizationFacts
from nemodiff_trt.quantization.recipe import layer_of
from nemodiff_trt.vocabulary import LinearFormat, Precision, Role

# Steps of the smallest batch of a profile that are audited where it takes them.
_STEPS = (1, 2, 4, 8, 16, 32)
_OPERANDS = {LinearFormat.FP8: "fp8", LinearFormat.NVFP4: "fp4"}


@dataclass(frozen=True, slots=True)
class EngineContext:
    """What all engines of a bundle share. `weights`, `weight_shapes` and `quantization` are those of the manifest."""

    model: ModelConfig
    precision: Precision
    limits: Limits
    weights: Mapping[str, WeightLayout]
    weight_shapes: Mapping[str, tuple[int, ...]]
    quantization: QuantizationFacts | None = None

    @classmethod
    def of(cls, manifest: Manifest) -> EngineContext:
        return cls(
            manifest.model, manifest.precision, manifest.limits, manifest.weights, manifest.weight_shapes, manifest.quantization
        )


def engine_facts(role: Role, engine: RoleEngine, context: EngineContext) -> StepFacts:
    """Facts of the engine of `role`, audited with caches half full.

    Every profile is audited at its largest size, and at its smallest batch with several step lengths.
    """
    model, capacity = context.model, context.limits.cache_capacity
    profiles = tuple(
        ProfileRange(profile.min_batch, profile.max_batch, profile.min_step, profile.max_step) for profile in engine.profiles
    )
    points = set()
    for profile in profiles:
        steps = [step for step in _STEPS if profile.min_step <= step < profile.max_step] + [profile.max_step]
        points |= {AuditPoint(profile.min_batch, step, capacity // 2) for step in steps}
        points.add(AuditPoint(profile.max_batch, profile.max_step, capacity // 2))
    bound = {name: _weight(name, role, context, embedded=False) for name in engine.weights}
    inside = {name: _weight(name, role, context, embedded=True) for name in engine.constants}
    return StepFacts(
        role=role,
        precision=context.precision,
        num_layers=model.num_hidden_layers,
        vocab_size=model.vocab_size,
        cache=CacheFact(model.num_key_value_heads, capacity, model.head_dim, ITEM_BYTES[ENGINE_FLOAT[context.precision]]),
        weights={**bound, **inside},
        profiles=profiles,
        points=tuple(sorted(points, key=lambda point: (point.batch, point.step))),
    )


def _weight(name: str, role: Role, context: EngineContext, embedded: bool) -> WeightFact:
    dtype, shape = context.weights[name].dtype, context.weight_shapes[name]
    num_bytes = math.prod(shape) * ITEM_BYTES[dtype]
    return WeightFact(dtype, shape, num_bytes, is_row_table(name), embedded, _operands(name, role, context))


def _operands(name: str, role: Role, context: EngineContext) -> str:
    """Format that the recipe asks of a matrix, whatever it is stored as."""
    layout = context.weights[name]
    if context.quantization is None or layout.encoding not in (Encoding.PLAIN, Encoding.FP8, Encoding.NVFP4):
        return ""
    form = context.quantization.recipe_of(role).format_of(layer_of(layout.sources[0])) if layout.sources else None
    return _OPERANDS[form] if form is not None else ""

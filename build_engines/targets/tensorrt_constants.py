"""Stored tensors that a TensorRT plan holds as constants: all of them, or the scales that it must know to lay them out."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from nemodiff_trt.build_engines.targets.build_target import BuildInput
from nemodiff_trt.bundle import Encoding, WeightLayout, mapped_tensors
from nemodiff_trt.bundle.manifest import WEIGHTS_FILE
from nemodiff_trt.options import WeightStorage

# As inputs, block scales would be rearranged at every step; global scales of a dynamic quantisation have to be constants.
BAKED = (Encoding.NVFP4_BLOCK_SCALES, Encoding.NVFP4_WEIGHT_SCALE, Encoding.NVFP4_INPUT_SCALE)
# e4m3 numbers from 0.5 to 240, as bits: what scales of a real matrix look like.
_LOWEST_CODE, _HIGHEST_CODE = 0x30, 0x77
_RANDOM_SCALE = np.float32(0.01)
_SHIFT = 4099


@dataclass(frozen=True, slots=True)
class PlanConstants:
    """Tensors to embed by stored name; `is_random` if some stand in for those of a checkpoint."""

    tensors: Mapping[str, np.ndarray]
    is_random: bool = False


def plan_constants(build: BuildInput) -> PlanConstants:
    """What the plans of a build hold themselves."""
    layouts = build.stored.layouts
    if build.options.weights is WeightStorage.EMBEDDED:
        return PlanConstants(mapped_tensors(build.bundle_dir / WEIGHTS_FILE))
    baked = {name: layout for name, layout in layouts.items() if layout.encoding in BAKED}
    if not baked:
        return PlanConstants({})
    if not build.has_weights:
        return PlanConstants(_random_scales(baked, build.stored.shapes), is_random=True)
    stored = mapped_tensors(build.bundle_dir / WEIGHTS_FILE)
    return PlanConstants({name: stored[name] for name in baked})


def _random_scales(baked: Mapping[str, WeightLayout], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Scales that differ from tensor to tensor, all views of one pool: those of 14B would take 0.8 GB."""
    sizes = {name: math.prod(shapes[name]) for name, layout in baked.items() if layout.encoding is Encoding.NVFP4_BLOCK_SCALES}
    generator = np.random.default_rng(0)
    length = max(sizes.values()) + _SHIFT * len(sizes)
    pool = generator.integers(_LOWEST_CODE, _HIGHEST_CODE, length, dtype=np.uint8, endpoint=True)
    found: dict[str, np.ndarray] = {name: np.full(shapes[name], _RANDOM_SCALE) for name in baked if name not in sizes}
    for index, (name, size) in enumerate(sizes.items()):
        found[name] = pool[_SHIFT * index :][:size].reshape(shapes[name])
    return found

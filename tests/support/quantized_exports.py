"""Quantised exports of the tiny random checkpoint, with made-up ranges of activations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nemodiff_trt.checkpoint import Checkpoint
from nemodiff_trt.hf_export import ExportSource, LayerQuantization, export_hf
from nemodiff_trt.quantization.recipe import Override, Recipe, linear_names
from nemodiff_trt.quantization.statistics import ActivationRange, ActivationStatistics
from nemodiff_trt.vocabulary import LinearFormat, Role

FP8, NVFP4 = LinearFormat.FP8, LinearFormat.NVFP4
RECIPES = {
    "fp8": Recipe(FP8),
    "nvfp4": Recipe(NVFP4),
    "mixed": Recipe(
        NVFP4, (Override("*.layers.0.self_attn.*", None), Override("*.down_proj", FP8), Override("diffusion_head", FP8))
    ),
}


def made_up_statistics(checkpoint: Checkpoint) -> ActivationStatistics:
    """Another range for every layer, awkward in binary."""
    names = linear_names(checkpoint.config)
    amax = {name: {Role.PREFILL: 1.1 + index / 7, Role.DRAFT: 1.3 + index / 7} for index, name in enumerate(names)}
    return ActivationStatistics(checkpoint.identity, ActivationRange.MAX, 3, 100, amax)


def export_quantized(checkpoint_dir: Path, output: Path, recipe: Recipe, **options: Any) -> Path:
    checkpoint = Checkpoint.open(checkpoint_dir)
    quantization = LayerQuantization(recipe, made_up_statistics(checkpoint).input_amax)
    export_hf(ExportSource.from_checkpoint(checkpoint), output, quantization=quantization, **options)
    return output

"""Quantised layers in ModelOpt's unified Hugging Face layout, with the codes and scales that engines get."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from nemodiff_trt.checkpoint.layout import decoder_shapes
from nemodiff_trt.checkpoint.ministral3 import to_ministral3_name
from nemodiff_trt.config import ModelConfig
from nemodiff_trt.errors import InvalidInputError
from nemodiff_trt.hf_export.source import ExportSource
from nemodiff_trt.hf_export.tensor_groups import TensorGroup
from nemodiff_trt.quantization.formats import joint_amax, pack, scale_of
from nemodiff_trt.quantization.modelopt_layout import QuantizedLinear, stored_parts
from nemodiff_trt.quantization.recipe import Recipe, WeightScales, joined_linears, layer_of
from nemodiff_trt.vocabulary import LinearFormat


@dataclass(frozen=True, slots=True)
class LayerQuantization:
    """What is quantised, and the range of a layer's input by its name without `.weight`."""

    recipe: Recipe
    input_amax: Callable[[str], float]

    def formats(self, config: ModelConfig) -> dict[str, LinearFormat | None]:
        """Format of every matrix of the decoder, by name without `.weight`; the embedding has none."""
        matrices = [layer_of(name) for name, shape in decoder_shapes(config).items() if len(shape) == 2]
        return {name: self.recipe.format_of(name) for name in matrices}

    def check(self, config: ModelConfig) -> None:
        """Hold recipe and ranges against the model.

        Raises:
            InvalidInputError: the recipe does not fit or quantises nothing, or a quantised layer was not calibrated.
        """
        self.recipe.check(config)
        quantized = [name for name, form in self.formats(config).items() if form is not None]
        if not quantized:
            raise InvalidInputError("recipe", "no quantised layer", "at least one; leave precision and recipe out otherwise")
        for name in quantized:
            self.input_amax(name)

    def pack(self, form: LinearFormat, matrices: list[Tensor], linears: tuple[str, ...]) -> Iterator[QuantizedLinear]:
        """Quantise matrices that share their input, [out,in] each: they get one range and one input scale."""
        weight_amax = joint_amax(matrices)
        input_scale = scale_of(form, torch.tensor(max(self.input_amax(name) for name in linears)))
        for matrix in matrices:
            yield QuantizedLinear(pack(form, matrix, weight_amax, self.recipe.weights is WeightScales.MSE), input_scale)


def quantized_groups(source: ExportSource, quantization: LayerQuantization) -> list[TensorGroup]:
    """One group for all layers over one input, in the order of the decoder."""
    formats = quantization.formats(source.config)
    groups = dict.fromkeys(joined_linears(name) for name, form in formats.items() if form is not None)
    return [_group(source, quantization, linears, formats[linears[0]]) for linears in groups]


def _group(
    source: ExportSource, quantization: LayerQuantization, linears: tuple[str, ...], form: LinearFormat | None
) -> TensorGroup:
    assert form is not None, "only groups of quantised layers are made"
    shapes = decoder_shapes(source.config)
    tensors: dict[str, tuple[str, tuple[int, ...]]] = {}
    for linear in linears:
        height, width = shapes[f"{linear}.weight"]
        parts = stored_parts(form, (height, width))
        tensors |= {to_ministral3_name(f"{linear}.{part}"): facts for part, facts in parts.items()}

    def produce() -> Iterator[tuple[str, Tensor]]:
        matrices = [source.tensor(f"{linear}.weight") for linear in linears]
        for linear, packed in zip(linears, quantization.pack(form, matrices, linears), strict=True):
            for part, tensor in packed.parts():
                yield to_ministral3_name(f"{linear}.{part}"), tensor

    return TensorGroup(tensors, produce)

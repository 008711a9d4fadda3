"""Quantised layers in the eager decoder: the oracle of quantised engines."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from nemodiff_trt.quantization.formats import fake_quantize_fp8, fake_quantize_nvfp4
from nemodiff_trt.vocabulary import LinearFormat

_ROUND = {LinearFormat.FP8: fake_quantize_fp8, LinearFormat.NVFP4: fake_quantize_nvfp4}


def quantize_inputs(decoder: nn.Module, scales: Mapping[str, tuple[LinearFormat, Tensor]]) -> None:
    """Round the inputs of linear layers to their format from now on; matrices are left as they are.

    Args:
        decoder: its linear layers are named as in the checkpoint.
        scales: format and scale (fp32 []) by layer.
    """
    for name, (form, scale) in scales.items():
        decoder.get_submodule(name).register_forward_pre_hook(_RoundInput(form, scale))


def input_formats(decoder: nn.Module) -> frozenset[LinearFormat]:
    """Formats that inputs of `decoder` are rounded to."""
    hooks = [hook for module in decoder.modules() for hook in module._forward_pre_hooks.values()]  # noqa: SLF001
    return frozenset(hook.format for hook in hooks if isinstance(hook, _RoundInput))


@dataclass(frozen=True, slots=True)
class _RoundInput:
    """Hook in front of a linear layer."""

    format: LinearFormat
    scale: Tensor

    def __call__(self, _: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (_ROUND[self.format](args[0], self.scale),)

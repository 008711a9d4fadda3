"""How ModelOpt's unified Hugging Face export stores a quantised linear layer: names, dtypes and shapes.

Beside `NAME.weight` lie `NAME.weight_scale`, for NVFP4 `NAME.weight_scale_2`, and `NAME.input_scale`:

    FP8     weight float8_e4m3fn [out,in]   weight_scale fp32 []                                            input_scale fp32 []
    NVFP4   weight uint8 [out,in/2]         weight_scale float8_e4m3fn [out,in/16]   weight_scale_2 fp32 []  input_scale fp32 []

`input_scale` is the range of the input over 448 for FP8 and over 6 * 448 for NVFP4. Learned from exports of ModelOpt 0.47.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from nemodiff_trt.errors import CheckpointError
from nemodiff_trt.quantization.formats import Fp8Tensor, Nvfp4Tensor
from nemodiff_trt.vocabulary import NVFP4_BLOCK, LinearFormat

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class QuantizedLinear:
    """A linear layer: its matrix in codes, and the scale of its input, fp32 []."""

    weight: Fp8Tensor | Nvfp4Tensor
    input_scale: Tensor

    @property
    def format(self) -> LinearFormat:
        return LinearFormat.FP8 if isinstance(self.weight, Fp8Tensor) else LinearFormat.NVFP4

    def parts(self) -> Iterator[tuple[str, Tensor]]:
        """Stored tensors by the last part of their name."""
        if isinstance(self.weight, Fp8Tensor):
            yield from (("weight", self.weight.values), ("weight_scale", self.weight.scale))
        else:
            yield from (("weight", self.weight.payload), ("weight_scale", self.weight.block_scales))
            yield "weight_scale_2", self.weight.global_scale
        yield "input_scale", self.input_scale

    @classmethod
    def from_parts(cls, form: LinearFormat, parts: Mapping[str, Tensor]) -> QuantizedLinear:
        """Inverse of `parts`; a scale may come as [1]."""
        scalars = {name: part.reshape(()) for name, part in parts.items() if part.numel() == 1}
        if form is LinearFormat.FP8:
            return cls(Fp8Tensor(parts["weight"], scalars["weight_scale"]), scalars["input_scale"])
        matrix = Nvfp4Tensor(parts["weight"], parts["weight_scale"], scalars["weight_scale_2"])
        return cls(matrix, scalars["input_scale"])


def stored_parts(form: LinearFormat, shape: tuple[int, int]) -> dict[str, tuple[str, Shape]]:
    """Dtype, as torch spells it, and shape of every stored tensor of a matrix [out,in], by the last part of its name."""
    out, width = shape
    scalar: tuple[str, Shape] = ("float32", ())
    if form is LinearFormat.FP8:
        return {"weight": ("float8_e4m3fn", shape), "weight_scale": scalar, "input_scale": scalar}
    return {
        "weight": ("float4_e2m1fn_x2", (out, width // 2)),
        "weight_scale": ("float8_e4m3fn", (out, width // NVFP4_BLOCK)),
        "weight_scale_2": scalar,
        "input_scale": scalar,
    }


def check_scale(name: str, scale: Tensor) -> None:
    """A scale is a finite number above 0, every one of them.

    Raises:
        CheckpointError: `name` holds NaN, an infinity, zero or a negative number.
    """
    numbers = scale.to(torch.float32)
    is_good = torch.isfinite(numbers) & (numbers > 0)
    if not bool(is_good.all()):
        wrong = numbers[~is_good].flatten()
        shown = f"{len(wrong)} of {numbers.numel()} scales like {float(wrong[0])}" if numbers.numel() > 1 else float(wrong[0])
        raise CheckpointError(name, shown, "finite numbers above 0")


def check_codes(name: str, weight: Fp8Tensor | Nvfp4Tensor) -> None:
    """Every code stands for a number: FP8 has two that do not.

    Raises:
        CheckpointError: the matrix `name` holds NaN.
    """
    if isinstance(weight, Fp8Tensor):
        # The two codes of NaN are all ones but for the sign.
        num_nan = int(((weight.values.view(torch.uint8) & 0x7F) == 0x7F).sum())
        if num_nan:
            raise CheckpointError(name, f"{num_nan} codes of NaN", "finite numbers")

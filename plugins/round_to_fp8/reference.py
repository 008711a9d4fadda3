"""`nemodiff::round_to_fp8`: an input in the numbers of FP8, for engines that emulate the format."""

from __future__ import annotations

import torch
from torch import Tensor

from nemodiff_trt.quantization.formats import fake_quantize_fp8


def round_to_fp8_reference(x: Tensor, scale: Tensor) -> Tensor:
    """`x` [...,in] in the numbers of FP8 with `scale` fp32 []; same dtype."""
    return fake_quantize_fp8(x, scale)


round_to_fp8 = torch.library.custom_op("nemodiff::round_to_fp8", round_to_fp8_reference, mutates_args=())


@round_to_fp8.register_fake
def _(x: Tensor, scale: Tensor) -> Tensor:
    return torch.empty_like(x)

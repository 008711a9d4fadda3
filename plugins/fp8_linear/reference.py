"""`nemodiff::fp8_linear`: a linear layer whose input and matrix are FP8, as a GPU multiplies them.

Format and scales: `nemodiff_trt.quantization.formats`.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from nemodiff_trt.quantization.formats import Fp8Tensor, fake_quantize_fp8


def fp8_linear_reference(x: Tensor, weight: Tensor, weight_scale: Tensor, input_scale: Tensor) -> Tensor:
    """`x` [...,in] times `weight` float8_e4m3fn [out,in] transposed, scales fp32 []; same dtype as `x`."""
    matrix = Fp8Tensor(weight, weight_scale).dequantize(x.dtype)
    return functional.linear(fake_quantize_fp8(x, input_scale), matrix)


fp8_linear = torch.library.custom_op("nemodiff::fp8_linear", fp8_linear_reference, mutates_args=())


@fp8_linear.register_fake
def _(x: Tensor, weight: Tensor, weight_scale: Tensor, input_scale: Tensor) -> Tensor:
    return x.new_empty((*x.shape[:-1], weight.shape[0]))

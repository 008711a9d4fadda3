"""Linear layers whose input and matrix are FP8 or NVFP4, and the rounding of an input alone.

`nemodiff::fp8_linear`, `nemodiff::nvfp4_linear`: what a GPU multiplies in the format itself.
`nemodiff::round_to_fp8`, `nemodiff::round_to_nvfp4`: an input in the numbers of the format, for engines that emulate it.
Formats and scales: `nemodiff_trt.quantization.formats`.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from nemodiff_trt.quantization.formats import Fp8Tensor, Nvfp4Tensor, fake_quantize_fp8, fake_quantize_nvfp4


def round_to_fp8_reference(x: Tensor, scale: Tensor) -> Tensor:
    """`x` [...,in] in the numbers of FP8 with `scale` fp32 []; same dtype."""
    return fake_quantize_fp8(x, scale)


def round_to_nvfp4_reference(x: Tensor, global_scale: Tensor) -> Tensor:
    """`x` [...,in] in the numbers of NVFP4: block scales of its own under `global_scale` fp32 []; same dtype."""
    return fake_quantize_nvfp4(x, global_scale)


def fp8_linear_reference(x: Tensor, weight: Tensor, weight_scale: Tensor, input_scale: Tensor) -> Tensor:
    """`x` [...,in] times `weight` float8_e4m3fn [out,in] transposed, scales fp32 []; same dtype as `x`."""
    matrix = Fp8Tensor(weight, weight_scale).dequantize(x.dtype)
    return functional.linear(fake_quantize_fp8(x, input_scale), matrix)


def nvfp4_linear_reference(
    x: Tensor, payload: Tensor, block_scales: Tensor, weight_scale: Tensor, input_scale: Tensor
) -> Tensor:
    """`x` [...,in] times a matrix [out,in] transposed; same dtype as `x`.

    Args:
        x: any float dtype.
        payload: float4_e2m1fn_x2 [out,in/2].
        block_scales: float8_e4m3fn [out,in/16].
        weight_scale: global scale of the matrix, fp32 [].
        input_scale: global scale of `x`, fp32 [].
    """
    matrix = Nvfp4Tensor(payload.view(torch.uint8), block_scales, weight_scale).dequantize(x.dtype)
    return functional.linear(fake_quantize_nvfp4(x, input_scale), matrix)


@torch.library.custom_op("nemodiff::round_to_fp8", mutates_args=())
def round_to_fp8(x: Tensor, scale: Tensor) -> Tensor:
    return round_to_fp8_reference(x, scale)


@round_to_fp8.register_fake
def _(x: Tensor, scale: Tensor) -> Tensor:
    return torch.empty_like(x)


@torch.library.custom_op("nemodiff::round_to_nvfp4", mutates_args=())
def round_to_nvfp4(x: Tensor, global_scale: Tensor) -> Tensor:
    return round_to_nvfp4_reference(x, global_scale)


@round_to_nvfp4.register_fake
def _(x: Tensor, global_scale: Tensor) -> Tensor:
    return torch.empty_like(x)


@torch.library.custom_op("nemodiff::fp8_linear", mutates_args=())
def fp8_linear(x: Tensor, weight: Tensor, weight_scale: Tensor, input_scale: Tensor) -> Tensor:
    return fp8_linear_reference(x, weight, weight_scale, input_scale)


@fp8_linear.register_fake
def _(x: Tensor, weight: Tensor, weight_scale: Tensor, input_scale: Tensor) -> Tensor:
    return x.new_empty((*x.shape[:-1], weight.shape[0]))


@torch.library.custom_op("nemodiff::nvfp4_linear", mutates_args=())
def nvfp4_linear(x: Tensor, payload: Tensor, block_scales: Tensor, weight_scale: Tensor, input_scale: Tensor) -> Tensor:
    return nvfp4_linear_reference(x, payload, block_scales, weight_scale, input_scale)


@nvfp4_linear.register_fake
def _(x: Tensor, payload: Tensor, block_scales: Tensor, weight_scale: Tensor, input_scale: Tensor) -> Tensor:
    return x.new_empty((*x.shape[:-1], payload.shape[0]))

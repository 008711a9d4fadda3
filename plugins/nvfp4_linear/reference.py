"""`nemodiff::nvfp4_linear`: a linear layer whose input and matrix are NVFP4, as a GPU multiplies them.

Format and scales: `nemodiff_trt.quantization.formats`.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from nemodiff_trt.quantization.formats import Nvfp4Tensor, fake_quantize_nvfp4


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


nvfp4_linear = torch.library.custom_op("nemodiff::nvfp4_linear", nvfp4_linear_reference, mutates_args=())


@nvfp4_linear.register_fake
def _(x: Tensor, payload: Tensor, *_others: object) -> Tensor:
    return x.new_empty((*x.shape[:-1], payload.shape[0]))

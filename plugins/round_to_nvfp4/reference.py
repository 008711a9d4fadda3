"""`nemodiff::round_to_nvfp4`: an input in the numbers of NVFP4, for engines that emulate the format."""

from __future__ import annotations

import torch
from torch import Tensor

from nemodiff_trt.quantization.formats import fake_quantize_nvfp4


def round_to_nvfp4_reference(x: Tensor, global_scale: Tensor) -> Tensor:
    """`x` [...,in] in the numbers of NVFP4: block scales of its own under `global_scale` fp32 []; same dtype."""
    return fake_quantize_nvfp4(x, global_scale)


round_to_nvfp4 = torch.library.custom_op("nemodiff::round_to_nvfp4", round_to_nvfp4_reference, mutates_args=())


@round_to_nvfp4.register_fake
def _(x: Tensor, global_scale: Tensor) -> Tensor:
    return torch.empty_like(x)

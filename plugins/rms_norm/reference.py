"""`nemodiff::rms_norm`: root mean square normalisation over the last axis.

Equals ONNX `RMSNormalization` (opset 23) with `stash_type` float: the mean is taken in fp32 (fp64 for fp64 input), the result
is rounded to the input dtype and then multiplied by the weight.
"""

from __future__ import annotations

import torch
from torch import Tensor


def rms_norm_reference(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Normalise `x` [..., N] by its root mean square and scale by `weight` [N]; same dtype as `x`."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    normalised = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    return normalised.to(x.dtype) * weight


rms_norm = torch.library.custom_op("nemodiff::rms_norm", rms_norm_reference, mutates_args=())


@rms_norm.register_fake
def _(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return torch.empty_like(x)

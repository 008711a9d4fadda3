"""`nemodiff::select_position`: one row of every sequence of a step, so that a prefill runs the head once per sequence.

Equals ONNX `GatherND` (opset 13) with `batch_dims=1`.
"""

from __future__ import annotations

import torch
from torch import Tensor


def select_position_reference(x: Tensor, index: Tensor) -> Tensor:
    """Row `index` [B] of every sequence of `x` [B,S,N]: [B,1,N]."""
    return x.gather(1, index[:, None, None].expand(-1, 1, x.shape[-1]))


select_position = torch.library.custom_op("nemodiff::select_position", select_position_reference, mutates_args=())


@select_position.register_fake
def _(x: Tensor, index: Tensor) -> Tensor:
    return x.new_empty((x.shape[0], 1, x.shape[2]))

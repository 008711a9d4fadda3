"""`nemodiff::rotary`: rotary position embedding in the half-split (NeoX) pairing, from precomputed tables.

Equals ONNX `RotaryEmbedding` (opset 23) with `interleaved=0`: pair (i, i + D/2) is turned by the angle of row `positions`.
Tables may carry a factor (YaRN attention factor, query scale): the rotation is linear, so scaled tables scale the result.
"""

from __future__ import annotations

import torch
from torch import Tensor


def rotary_reference(x: Tensor, cos: Tensor, sin: Tensor, positions: Tensor, num_heads: int) -> Tensor:
    """Rotate every head of `x` [B,S,N*D] with N = `num_heads`.

    Args:
        x: queries or keys, any float dtype.
        cos: table [K, D/2], same dtype as `x`.
        sin: table [K, D/2].
        positions: int64 [B,S], rows of the tables.
        num_heads: N.
    """
    batch, step, width = x.shape
    heads = x.view(batch, step, num_heads, width // num_heads)
    first, second = heads.chunk(2, dim=-1)
    cos, sin = cos[positions][:, :, None, :], sin[positions][:, :, None, :]
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).view(batch, step, width)


rotary = torch.library.custom_op("nemodiff::rotary", rotary_reference, mutates_args=())


@rotary.register_fake
def _(x: Tensor, *_others: object) -> Tensor:
    return torch.empty_like(x)

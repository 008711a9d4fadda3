"""Checks that several Triton forms share."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

FLOATS = (torch.bfloat16, torch.float16, torch.float32)
# Programs address elements by 32-bit offsets within a row.
MAX_ROW = 2**31 - 1
# Tokens of a block that one program holds in registers.
MAX_BLOCK = 1024


def refuse_layout(tensors: Mapping[str, Tensor]) -> str | None:
    """Why these tensors cannot be handed to one launch: several devices, or one that is not dense."""
    devices = {tensor.device for tensor in tensors.values()}
    if len(devices) > 1:
        return f"tensors on {len(devices)} devices"
    for name, tensor in tensors.items():
        if not tensor.is_contiguous():
            return f"{name} is not contiguous"
    return None


def refuse_block(tensors: Mapping[str, Tensor]) -> str | None:
    """Why these are no blocks int64 [B,S] that one program can hold a row of."""
    for name, tensor in tensors.items():
        if tensor.dtype != torch.int64:
            return f"{name} is {tensor.dtype}"
        if tensor.ndim != 2 or tensor.numel() == 0 or tensor.shape[1] > MAX_BLOCK:
            return f"{name} has the shape {tuple(tensor.shape)}"
    return None


def next_power_of_2(value: int) -> int:
    """Smallest power of two that is at least `value`, which is positive."""
    return 1 << (value - 1).bit_length()

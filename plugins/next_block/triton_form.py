"""`nemodiff::next_block` in Triton."""

from __future__ import annotations

import torch
from torch import Tensor

from nemodiff_trt.plugins.next_block.triton_kernel import next_block_rows
from nemodiff_trt.plugins.triton_build import KernelBuild, Traffic, TritonForm
from nemodiff_trt.plugins.triton_checks import MAX_BLOCK, next_power_of_2, refuse_layout


def refuses(seed: Tensor, block_length: int, mask_token_id: int) -> str | None:
    """Why the kernel does not take these arguments."""
    if seed.dtype != torch.int64 or seed.numel() == 0:
        return f"seeds are {seed.dtype} of shape {tuple(seed.shape)}"
    if not 1 <= block_length <= MAX_BLOCK:
        return f"blocks of {block_length} tokens, 1 to {MAX_BLOCK} are taken"
    return refuse_layout({"seed": seed})


def launch(seed: Tensor, block_length: int, mask_token_id: int) -> Tensor:
    """Blocks int64 [B,S]; see `next_block_reference`."""
    block = torch.empty((len(seed), block_length), dtype=torch.int64, device=seed.device)
    next_block_rows[(len(seed),)](seed, block, block_length, mask_token_id, SLOTS=next_power_of_2(block_length), num_warps=1)
    return block


_TYPES = {"seed_ptr": "*i64", "block_ptr": "*i64", "block_length": "i32", "mask_id": "i32"}
_ALIGNED = frozenset({"seed_ptr", "block_ptr", "block_length"})

next_block_triton = TritonForm(
    launch,
    refuses,
    builds=(KernelBuild("next_block_rows-32", next_block_rows, _TYPES, {"SLOTS": 32}, _ALIGNED, num_warps=1),),
    traffic=(Traffic("8 blocks of 32", ("next_block_rows-32",), moved=8 * 33 * 8, minimum=8 * 33 * 8),),
)

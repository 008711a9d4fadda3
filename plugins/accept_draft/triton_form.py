"""`nemodiff::accept_draft` in Triton."""

from __future__ import annotations

import torch
from torch import Tensor

from nemodiff_trt.plugins.accept_draft.reference import Accepted
from nemodiff_trt.plugins.accept_draft.triton_kernel import accept_draft_rows
from nemodiff_trt.plugins.triton_build import KernelBuild, Traffic, TritonForm, addresses
from nemodiff_trt.plugins.triton_checks import next_power_of_2, refuse_block, refuse_layout

# Ids that may end a row; a program compares each of them with every token of the row.
MAX_ENDS = 64


def refuse_state(cache_length: Tensor, remaining: Tensor, end_token_ids: Tensor) -> str | None:
    """Why the kernels do not take these."""
    for name, tensor in (("cache_length", cache_length), ("remaining", remaining), ("end_token_ids", end_token_ids)):
        if tensor.dtype != torch.int64 or tensor.ndim != 1:
            return f"{name} is {tensor.dtype} of shape {tuple(tensor.shape)}"
    return f"{len(end_token_ids)} ids end a row, {MAX_ENDS} are taken" if len(end_token_ids) > MAX_ENDS else None


def refuses(block: Tensor, verified: Tensor, cache_length: Tensor, remaining: Tensor, end_token_ids: Tensor) -> str | None:
    """Why the kernel does not take these arguments."""
    blocks = {"block": block, "verified": verified}
    state = {"cache_length": cache_length, "remaining": remaining, "end_token_ids": end_token_ids}
    return refuse_block(blocks) or refuse_state(**state) or refuse_layout(blocks | state)


def launch(block: Tensor, verified: Tensor, cache_length: Tensor, remaining: Tensor, end_token_ids: Tensor) -> Accepted:
    """The six results of `accept_draft_reference`."""
    rows, step = block.shape
    results = empty_results(block)
    slots, num_ends = next_power_of_2(step), len(end_token_ids)
    accept_draft_rows[(rows,)](
        block, verified, cache_length, remaining, end_token_ids, *results, step, num_ends,
        SLOTS=slots, ENDS=next_power_of_2(max(num_ends, 1)), num_warps=1,
    )  # fmt: skip
    return results


def empty_results(block: Tensor) -> Accepted:
    """Room for the results of a step of `block` [B,S]."""
    first, *others = (torch.empty(len(block), dtype=torch.int64, device=block.device) for _ in range(5))
    second, third, fourth, fifth = others
    return first, torch.empty_like(block), second, third, fourth, fifth


_POINTERS = (
    "block_ptr verified_ptr length_ptr remaining_ptr ends_ptr "
    "accepted_ptr emitted_ptr count_ptr seed_ptr next_length_ptr left_ptr"
)  # fmt: skip
_TYPES = dict.fromkeys(_POINTERS.split(), "*i64") | {"step": "i32", "num_ends": "i32"}


def _build(slots: int) -> KernelBuild:
    constants = {"SLOTS": slots, "ENDS": 4}
    aligned = addresses(_TYPES) | {"step"}
    return KernelBuild(f"accept_draft_rows-{slots}", accept_draft_rows, _TYPES, constants, aligned, num_warps=1)


def _traffic(rows: int, step: int) -> Traffic:
    # Block, verified and emitted; two numbers in, five out; the ids that end a row, once a program.
    moved = rows * (3 * step + 7 + 4) * 8
    return Traffic(f"{rows} blocks of {step}", (f"accept_draft_rows-{step}",), moved, rows * (3 * step + 7) * 8 + 4 * 8)


accept_draft_triton = TritonForm(
    launch, refuses, builds=tuple(_build(slots) for slots in (16, 32, 64)), traffic=tuple(_traffic(8, s) for s in (16, 32))
)

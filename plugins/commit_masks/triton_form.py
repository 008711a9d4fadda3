"""`nemodiff::commit_masks` in Triton."""

from __future__ import annotations

import torch
from torch import Tensor

from nemodiff_trt.plugins.commit_masks.reference import Committed
from nemodiff_trt.plugins.commit_masks.triton_kernel import commit_masks_rows
from nemodiff_trt.plugins.triton_build import KernelBuild, Traffic, TritonForm, addresses
from nemodiff_trt.plugins.triton_checks import next_power_of_2, refuse_block, refuse_layout

_CHUNK = 16
# Above any probability.
_NEVER = 2.0


def refuses(
    block: Tensor,
    token: Tensor,
    confidence: Tensor,
    quota: Tensor,
    mask_token_id: int,
    eos_token_id: int,
    threshold: float | None = None,
) -> str | None:
    """Why the kernel does not take these arguments."""
    if confidence.dtype != torch.float32:
        return f"confidences are {confidence.dtype}"
    if quota.dtype != torch.int64:
        return f"quotas are {quota.dtype}"
    refusal = refuse_block({"block": block, "token": token})
    return refusal or refuse_layout({"block": block, "token": token, "confidence": confidence, "quota": quota})


def launch(
    block: Tensor,
    token: Tensor,
    confidence: Tensor,
    quota: Tensor,
    mask_token_id: int,
    eos_token_id: int,
    threshold: float | None = None,
) -> Committed:
    """Block [B,S] after the pass, number fixed, masks left, end offset [B]; see `commit_masks_reference`."""
    rows, step = block.shape
    ids = torch.empty_like(block)
    fixed, left, end = (torch.empty_like(quota) for _ in range(3))
    slots = max(next_power_of_2(step), _CHUNK)
    commit_masks_rows[(rows,)](
        block, token, confidence, quota, ids, fixed, left, end, step, mask_token_id, eos_token_id,
        _NEVER if threshold is None else threshold, SLOTS=slots, CHUNK=_CHUNK, num_warps=_num_warps(slots),
    )  # fmt: skip
    return ids, fixed, left, end


def _num_warps(slots: int) -> int:
    return 1 if slots <= 32 else 4


_TYPES = {
    "block_ptr": "*i64", "token_ptr": "*i64", "confidence_ptr": "*fp32", "quota_ptr": "*i64", "ids_ptr": "*i64",
    "fixed_ptr": "*i64", "left_ptr": "*i64", "end_ptr": "*i64", "step": "i32", "mask_id": "i32", "eos_id": "i32",
    "threshold": "fp32",
}  # fmt: skip


def _build(slots: int) -> KernelBuild:
    aligned = addresses(_TYPES) | {"step"}
    constants = {"SLOTS": slots, "CHUNK": _CHUNK}
    return KernelBuild(f"commit_masks_rows-{slots}", commit_masks_rows, _TYPES, constants, aligned, _num_warps(slots))


def _traffic(rows: int, step: int) -> Traffic:
    # Ids, predictions and confidences in, ids out; four numbers a row.
    minimum = rows * (step * (8 + 8 + 4 + 8) + 4 * 8)
    # Pairs are compared by reading ids and confidences a second time; that comes from the cache and counts all the same.
    return Traffic(f"{rows} blocks of {step}", (f"commit_masks_rows-{step}",), minimum + rows * step * 12, minimum)


commit_masks_triton = TritonForm(
    launch, refuses, builds=tuple(_build(slots) for slots in (16, 32, 64)), traffic=tuple(_traffic(8, s) for s in (16, 32))
)

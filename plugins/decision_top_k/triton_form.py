"""`nemodiff::decision_top_k` in Triton: sizes, launch, what is compiled ahead of time."""

from __future__ import annotations

import torch
from torch import Tensor

from nemodiff_trt.plugins.decision_head.triton_form import LARGE_PART, SMALL_PART, num_warps, part_size
from nemodiff_trt.plugins.decision_head.triton_form import refuses as refuses_logits
from nemodiff_trt.plugins.decision_top_k.reference import Ranked
from nemodiff_trt.plugins.decision_top_k.triton_kernel import top_k_combine, top_k_part
from nemodiff_trt.plugins.triton_build import KernelBuild, Traffic, TritonForm, addresses
from nemodiff_trt.plugins.triton_checks import next_power_of_2

# Candidates of a row that the second kernel holds in the registers of its warps.
_MAX_CANDIDATES = 8192
_COMBINE_WARPS = 4
_VOCAB_SIZE, _SHIPPED_K = 131_072, 8


def refuses(logits: Tensor, mask_token_id: int, k: int) -> str | None:
    """Why the kernels do not take these arguments."""
    refusal = refuses_logits(logits, mask_token_id)
    if refusal is not None:
        return refusal
    num_ids = logits.shape[-1]
    if not 1 <= k < num_ids:
        return f"k is {k}, 1 to {num_ids - 1} are taken"
    size = part_size(logits.numel() // num_ids)
    if -(-num_ids // size) * k > _MAX_CANDIDATES:
        return f"k is {k}, {_MAX_CANDIDATES // -(-num_ids // size)} are taken at most for {num_ids} ids"
    return None


def launch(logits: Tensor, mask_token_id: int, k: int) -> Ranked:
    """Tokens int64 [B,S,k], probabilities fp32 [B,S,k], entropy fp32 [B,S]; see `decision_top_k_reference`."""
    num_ids = logits.shape[-1]
    rows = logits.numel() // num_ids
    size = part_size(rows)
    num_parts = -(-num_ids // size)
    device = logits.device
    keys, ids = torch.empty((2, rows, num_parts, k), dtype=torch.int32, device=device)
    largest = torch.empty((rows, num_parts), dtype=torch.int32, device=device)
    sums, mixed = torch.empty((2, rows, num_parts), dtype=torch.float32, device=device)
    token = torch.empty((*logits.shape[:-1], k), dtype=torch.int64, device=device)
    probability = torch.empty((*logits.shape[:-1], k), dtype=torch.float32, device=device)
    entropy = torch.empty(logits.shape[:-1], dtype=torch.float32, device=device)
    top_k_part[(rows * num_parts,)](
        logits, num_ids, num_parts, mask_token_id, k, keys, ids, largest, sums, mixed, BLOCK=size, num_warps=num_warps(size)
    )
    top_k_combine[(rows,)](
        keys, ids, largest, sums, mixed, num_parts, k, token, probability, entropy,
        PARTS=next_power_of_2(num_parts), CANDIDATES=next_power_of_2(num_parts * k), num_warps=_COMBINE_WARPS,
    )  # fmt: skip
    return token, probability, entropy


_SIZES = {"num_ids": "i32", "num_parts": "i32", "mask_id": "i32", "k": "i32"}
_PARTIAL = {"key_ptr": "*i32", "id_ptr": "*i32", "largest_ptr": "*i32", "sum_ptr": "*fp32", "mixed_ptr": "*fp32"}
_RESULTS = {"token_ptr": "*i64", "probability_ptr": "*fp32", "entropy_ptr": "*fp32"}


def _builds(dtype: str, size: int) -> tuple[KernelBuild, KernelBuild]:
    num_parts, suffix = _VOCAB_SIZE // size, f"{dtype}-{size}"
    types = {"logits_ptr": f"*{dtype}", **_SIZES, **_PARTIAL}
    # 131,072 logits are a multiple of 16: every row starts on a 16-byte border.
    aligned = addresses(types) | {"num_ids"}
    part = KernelBuild(f"top_k_part-{suffix}", top_k_part, types, {"BLOCK": size}, aligned, num_warps(size), streams=True)
    types = {**_PARTIAL, "num_parts": "i32", "k": "i32", **_RESULTS}
    aligned = addresses(types)
    constants = {"PARTS": num_parts, "CANDIDATES": num_parts * _SHIPPED_K}
    combine = KernelBuild(f"top_k_combine-{num_parts}x{_SHIPPED_K}", top_k_combine, types, constants, aligned, _COMBINE_WARPS)
    return part, combine


def _traffic(rows: int) -> Traffic:
    size = part_size(rows)
    num_parts, k = _VOCAB_SIZE // size, _SHIPPED_K
    minimum = rows * (_VOCAB_SIZE * 2 + 12 * k + 4)
    # What the parts took is written once and read once.
    moved = minimum + rows * 2 * num_parts * (8 * k + 12)
    kernels = (f"top_k_part-bf16-{size}", f"top_k_combine-{num_parts}x{k}")
    return Traffic(f"{rows} rows of {_VOCAB_SIZE} bf16 logits, {k} best", kernels, moved, minimum)


decision_top_k_triton = TritonForm(
    launch,
    refuses,
    builds=tuple(
        {
            build.name: build
            for dtype in ("bf16", "fp16", "fp32")
            for size in (SMALL_PART, LARGE_PART)
            for build in _builds(dtype, size)
        }.values()
    ),
    traffic=(_traffic(1), _traffic(32)),
)

"""`nemodiff::decision_head` in Triton: sizes, launch, what is compiled ahead of time."""

from __future__ import annotations

import torch
from torch import Tensor

from nemodiff_trt.plugins.decision_head.triton_kernel import decision_head_combine, decision_head_part
from nemodiff_trt.plugins.triton_build import KernelBuild, Traffic, TritonForm, addresses
from nemodiff_trt.plugins.triton_checks import FLOATS, MAX_ROW, next_power_of_2, refuse_layout

# Logits of one program. Few rows: small parts, so that 131,072 logits make 128 programs. Many rows fill a GPU anyway, and
# larger parts leave fewer intermediate results.
SMALL_PART, LARGE_PART = 1024, 4096
MAX_ROWS_IN_SMALL_PARTS = 8
_PART_BYTES = 12
_VOCAB_SIZE = 131_072


def part_size(num_rows: int) -> int:
    """Logits of one program for a step of so many rows."""
    return SMALL_PART if num_rows <= MAX_ROWS_IN_SMALL_PARTS else LARGE_PART


def num_warps(size: int) -> int:
    """Warps of a program of `size` logits: 8 to 16 of them a thread, so that many programs fit on a multiprocessor."""
    return 4 if size <= SMALL_PART else 8


def refuses(logits: Tensor, mask_token_id: int) -> str | None:
    """Why the kernels do not take these arguments."""
    if logits.dtype not in FLOATS:
        return f"logits are {logits.dtype}"
    if not 0 < logits.shape[-1] <= MAX_ROW or logits.numel() == 0:
        return f"logits have the shape {tuple(logits.shape)}"
    if not 0 <= mask_token_id < logits.shape[-1]:
        return f"the mask id {mask_token_id} lies outside the vocabulary"
    return refuse_layout({"logits": logits})


def launch(logits: Tensor, mask_token_id: int) -> tuple[Tensor, Tensor]:
    """Token int64 [B,S] and its probability fp32 [B,S] from `logits` [B,S,V]; see `decision_head_reference`."""
    num_ids = logits.shape[-1]
    rows = logits.numel() // num_ids
    size = part_size(rows)
    num_parts = -(-num_ids // size)
    keys, ids = torch.empty((2, rows, num_parts), dtype=torch.int32, device=logits.device)
    sums = torch.empty((rows, num_parts), dtype=torch.float32, device=logits.device)
    token = torch.empty(logits.shape[:-1], dtype=torch.int64, device=logits.device)
    confidence = torch.empty(logits.shape[:-1], dtype=torch.float32, device=logits.device)
    decision_head_part[(rows * num_parts,)](
        logits, num_ids, num_parts, mask_token_id, keys, ids, sums, BLOCK=size, num_warps=num_warps(size)
    )
    decision_head_combine[(rows,)](
        logits, keys, ids, sums, num_ids, num_parts, mask_token_id, token, confidence,
        PARTS=next_power_of_2(num_parts), num_warps=1,
    )  # fmt: skip
    return token, confidence


_PARTIAL = {"key_ptr": "*i32", "id_ptr": "*i32", "sum_ptr": "*fp32"}
_RESULTS = {"token_ptr": "*i64", "confidence_ptr": "*fp32"}
_SIZES = {"num_ids": "i32", "num_parts": "i32", "mask_id": "i32"}


def builds_for(dtype: str, size: int, num_ids: int) -> tuple[KernelBuild, KernelBuild]:
    """Both kernels for logits of a Triton type in parts of `size`, and a vocabulary of `num_ids`."""
    suffix = f"{dtype}-{size}"
    types = {"logits_ptr": f"*{dtype}"} | _SIZES | _PARTIAL
    aligned = addresses(types)
    # With a multiple of 16 every row starts on a 16-byte border.
    lengths = frozenset({"num_ids"}) if num_ids % 16 == 0 else frozenset()
    part = KernelBuild(
        f"decision_head_part-{suffix}",
        decision_head_part,
        types,
        {"BLOCK": size},
        aligned | lengths,
        num_warps(size),
        streams=True,
    )
    types = types | _RESULTS
    aligned = addresses(types) | lengths
    constants = {"PARTS": next_power_of_2(-(-num_ids // size))}
    combine = KernelBuild(f"decision_head_combine-{suffix}", decision_head_combine, types, constants, aligned, num_warps=1)
    return part, combine


def _traffic(dtype: str, item_bytes: int, rows: int) -> Traffic:
    size = part_size(rows)
    num_parts = _VOCAB_SIZE // size
    minimum = rows * (_VOCAB_SIZE * item_bytes + 12)
    # Intermediate results are written once and read once; the mask's logit is read a second time, as one sector of 32 bytes.
    moved = minimum + rows * (2 * _PART_BYTES * num_parts + 32)
    kernels = (f"decision_head_part-{dtype}-{size}", f"decision_head_combine-{dtype}-{size}")
    return Traffic(f"{rows} rows of {_VOCAB_SIZE} {dtype} logits", kernels, moved, minimum)


decision_head_triton = TritonForm(
    launch,
    refuses,
    builds=tuple(
        build
        for dtype in ("bf16", "fp16", "fp32")
        for size in (SMALL_PART, LARGE_PART)
        for build in builds_for(dtype, size, _VOCAB_SIZE)
    ),
    traffic=tuple(_traffic(dtype, item, rows) for dtype, item in (("bf16", 2), ("fp32", 4)) for rows in (1, 32, 256)),
)

"""`nemodiff::accept_draft_sampled` in Triton."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nemodiff_trt.plugins.accept_draft.reference import Accepted
from nemodiff_trt.plugins.accept_draft.triton_form import empty_results, refuse_state
from nemodiff_trt.plugins.accept_draft_sampled.triton_kernel import sampled_emit_rows, sampled_match_rows, sampled_sum_parts
from nemodiff_trt.plugins.triton_build import KernelBuild, Traffic, TritonForm, addresses
from nemodiff_trt.plugins.triton_checks import MAX_ROW, next_power_of_2, refuse_block, refuse_layout

# Ids of one program; the part that holds the drawn token is read a second time.
PART = 2048
_VOCAB_SIZE = 131_072


def refuses(
    block: Tensor,
    draft_probabilities: Tensor,
    verify_probabilities: Tensor,
    uniforms: Tensor,
    cache_length: Tensor,
    remaining: Tensor,
    end_token_ids: Tensor,
) -> str | None:
    """Why the kernels do not take these arguments."""
    floats = {"draft": draft_probabilities, "verify": verify_probabilities, "uniforms": uniforms}
    for name, tensor in floats.items():
        if tensor.dtype != torch.float32:
            return f"{name} is {tensor.dtype}"
    if not 0 < verify_probabilities.shape[-1] <= MAX_ROW:
        return f"probabilities have the shape {tuple(verify_probabilities.shape)}"
    state = {"cache_length": cache_length, "remaining": remaining, "end_token_ids": end_token_ids}
    return refuse_block({"block": block}) or refuse_state(**state) or refuse_layout({"block": block} | floats | state)


def launch(
    block: Tensor,
    draft_probabilities: Tensor,
    verify_probabilities: Tensor,
    uniforms: Tensor,
    cache_length: Tensor,
    remaining: Tensor,
    end_token_ids: Tensor,
) -> Accepted:
    """The six results of `accept_draft_sampled_reference`."""
    rows, step = block.shape
    num_ids, num_ends = verify_probabilities.shape[-1], len(end_token_ids)
    num_parts = -(-num_ids // PART)
    matched = torch.empty(rows, dtype=torch.int32, device=block.device)
    rest, target = torch.empty((2, rows, num_parts), dtype=torch.float32, device=block.device)
    results = empty_results(block)
    slots = next_power_of_2(step)
    distributions = (draft_probabilities, verify_probabilities)
    sampled_match_rows[(rows,)](block, *distributions, uniforms, matched, step, num_ids, SLOTS=slots, num_warps=1)
    sampled_sum_parts[(rows * num_parts,)](*distributions, matched, rest, target, step, num_ids, num_parts, BLOCK=PART)
    sampled_emit_rows[(rows,)](
        block, *distributions, uniforms, cache_length, remaining, end_token_ids, matched, rest, target, *results,
        step, num_ids, num_parts, num_ends,
        SLOTS=slots, ENDS=next_power_of_2(max(num_ends, 1)), PARTS=next_power_of_2(num_parts), BLOCK=PART,
    )  # fmt: skip
    return results


_FLOATS = dict.fromkeys(("draft_ptr", "verify_ptr", "uniforms_ptr", "rest_ptr", "target_ptr"), "*fp32")
_IDS = (
    "block_ptr length_ptr remaining_ptr ends_ptr accepted_ptr emitted_ptr count_ptr seed_ptr next_length_ptr left_ptr"
)  # fmt: skip
_ALL = (
    _FLOATS
    | dict.fromkeys(_IDS.split(), "*i64")
    | {"matched_ptr": "*i32"}
    | dict.fromkeys(("step", "num_ids", "num_parts", "num_ends"), "i32")
)


def _build(name: str, kernel: Any, constants: dict[str, int], num_warps: int = 4, streams: bool = False) -> KernelBuild:
    names = [argument for argument in kernel.arg_names if argument not in constants]
    types = {argument: _ALL[argument] for argument in names}
    aligned = addresses(types) | ({"num_ids", "step"} & types.keys())
    return KernelBuild(name, kernel, types, constants, aligned, num_warps, streams)


def _builds(slots: int) -> tuple[KernelBuild, ...]:
    sizes = {"SLOTS": slots, "ENDS": 4, "PARTS": _VOCAB_SIZE // PART, "BLOCK": PART}
    return (
        _build(f"sampled_match_rows-{slots}", sampled_match_rows, {"SLOTS": slots}, 1),
        _build(f"sampled_emit_rows-{slots}", sampled_emit_rows, sizes),
    )


def _traffic(rows: int, step: int) -> Traffic:
    num_parts = _VOCAB_SIZE // PART
    # Two rows of probabilities, and of every draft one sector of 32 bytes from either distribution.
    minimum = rows * (2 * _VOCAB_SIZE * 4 + 2 * 32 * (step - 1) + (2 * 8 + 4) * step + 7 * 8)
    # The sums are written once and read once, a part of either row is read again, and so is the block.
    moved = minimum + rows * (2 * 8 * num_parts + 2 * 4 * PART + 8 * step + 8)
    kernels = (f"sampled_match_rows-{step}", f"sampled_sum_parts-{PART}", f"sampled_emit_rows-{step}")
    return Traffic(f"{rows} blocks of {step}, {_VOCAB_SIZE} ids", kernels, moved, minimum)


accept_draft_sampled_triton = TritonForm(
    launch,
    refuses,
    builds=(
        _build(f"sampled_sum_parts-{PART}", sampled_sum_parts, {"BLOCK": PART}, streams=True),
        *(build for slots in (16, 32, 64) for build in _builds(slots)),
    ),
    traffic=tuple(_traffic(rows, 32) for rows in (1, 8)),
)

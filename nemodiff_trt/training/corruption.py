"""Masking of the noisy stream: every block draws its own rate (tech report arXiv 2607.05722, section 2)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nemodiff_trt.training.packing import PackedBatch


@dataclass(frozen=True, slots=True)
class Corruption:
    """Result of masking one batch; both tensors [B,T].

    `ids` are the batch's ids with masks written into the noisy stream; `weight` is 1/p on masked positions, 0 elsewhere,
    p being the rate of the position's block: the weight of the diffusion objective.
    """

    ids: Tensor
    weight: Tensor


def corrupt(batch: PackedBatch, mask_token_id: int, min_rate: float, generator: torch.Generator) -> Corruption:
    """Mask noisy tokens at rate p = (1 - min_rate) t + min_rate with t ~ U(0,1) per block; seeds stay visible.

    A smaller `min_rate` weighs rare single masks higher (1/p): less bias towards full masks, more gradient noise.
    """
    # One number per block: hash (sample, block start) to a slot of a random table.
    num_slots = 4096
    table = torch.rand(batch.ids.shape[0], num_slots, generator=generator)
    slot = (batch.sample.clamp(min=0) * 509 + batch.block_start) % num_slots
    rate = (1 - min_rate) * table.gather(1, slot) + min_rate
    is_candidate = batch.is_answer.clone()
    is_candidate[:, : batch.num_clean] = False
    is_masked = is_candidate & (torch.rand(batch.ids.shape, generator=generator) < rate)
    ids = torch.where(is_masked, mask_token_id, batch.ids)
    return Corruption(ids, torch.where(is_masked, 1 / rate, 0.0))

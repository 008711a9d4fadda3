"""The joint objective L = L_AR + alpha L_diff, averaged over the tokens of the whole batch (arXiv 2607.05722, section 2)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from nemodiff_trt.model import TriModeDecoder
from nemodiff_trt.training.corruption import Corruption
from nemodiff_trt.training.dual_stream import HiddenStates, hidden_states
from nemodiff_trt.training.packing import PackedBatch


@dataclass(frozen=True, slots=True)
class JointLoss:
    """`total` is differentiated; the others are detached means: nats per answer token, and top-1 hit rates."""

    total: Tensor
    autoregressive: float
    diffusion: float
    autoregressive_accuracy: float
    diffusion_accuracy: float


def joint_loss(
    decoder: TriModeDecoder,
    batch: PackedBatch,
    corruption: Corruption,
    diffusion_weight: float,
    forward: HiddenStates = hidden_states,
) -> JointLoss:
    """Cross-entropy of next tokens in the clean stream plus `diffusion_weight` times 1/p-weighted cross-entropy of masks.

    Global averaging: each sum is divided by the number of answer tokens of the whole batch, not row by row.
    """
    hidden = forward(decoder, corruption.ids, batch.position, batch.visibility(), batch.num_clean)
    counts = batch.is_answer.clone()
    counts[:, batch.num_clean :] = False
    is_masked = corruption.weight > 0
    num_causal = int(counts.sum())
    # Only rows that carry loss go through the head.
    rows = torch.cat((hidden[counts], hidden[is_masked]))
    targets = torch.cat((batch.target[counts], batch.target[is_masked]))
    logits = decoder.diffusion_head(rows).float()
    losses = functional.cross_entropy(logits, targets, reduction="none")
    hits = (logits.detach().argmax(-1) == targets).float()
    causal = losses[:num_causal].sum() / num_causal
    num_noisy = batch.is_answer[:, batch.num_clean :].sum()
    diffusion = (losses[num_causal:] * corruption.weight[is_masked]).sum() / num_noisy
    return JointLoss(
        causal + diffusion_weight * diffusion,
        causal.item(),
        diffusion.item(),
        hits[:num_causal].mean().item(),
        hits[num_causal:].mean().item(),
    )

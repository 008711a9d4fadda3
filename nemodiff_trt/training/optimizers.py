"""Optimisers and learning-rate schedule of the base model."""

from __future__ import annotations

import torch
from torch import nn

from nemodiff_trt.training.options import TrainingOptions

Optimizers = tuple[torch.optim.Optimizer, ...]


def learning_rate_factor(step: int, num_steps: int, warmup_steps: int, decay_fraction: float) -> float:
    """Warm-up, plateau, linear decay to zero: a number in [0, 1] for the 0-based `step`."""
    warmup = min(1.0, (step + 1) / warmup_steps)
    decay = min(1.0, (num_steps - step) / (decay_fraction * num_steps))
    return min(warmup, decay)


def build_optimizers(decoder: nn.Module, options: TrainingOptions) -> Optimizers:
    """Muon for the matrices of the layers, AdamW for embedding, head and norms."""
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in decoder.named_parameters():
        is_matrix = parameter.ndim == 2 and ".layers." in name
        (matrices if is_matrix else others).append(parameter)
    return (
        torch.optim.Muon(matrices, lr=options.matrix_learning_rate, weight_decay=options.weight_decay),
        torch.optim.AdamW(others, lr=options.learning_rate, betas=(0.9, 0.95), weight_decay=options.weight_decay),
    )


def set_learning_rate(optimizers: Optimizers, factor: float) -> None:
    """Scale each group's initial rate by `factor`."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group.setdefault("initial_lr", group["lr"])
            group["lr"] = group["initial_lr"] * factor

"""Choices of a training run. Everything that changes the result is here, so that options and seed reproduce a checkpoint."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from nemodiff_trt.config import ModelConfig
from nemodiff_trt.errors import InvalidInputError
from nemodiff_trt.full_size import published_rope_parameters


def tiny_model_config(vocab_size: int = 1024) -> ModelConfig:
    """Geometry of `nemodiff-tiny`: 5.0 M parameters, rotary fields and special ids of the published models."""
    rope = published_rope_parameters(rope_theta=1e6)
    return ModelConfig(
        num_hidden_layers=6,
        hidden_size=256,
        intermediate_size=640,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=64,
        vocab_size=vocab_size,
        rms_norm_eps=1e-5,
        max_position_embeddings=262144,
        block_size=32,
        mask_token_id=100,
        bos_token_id=1,
        eos_token_id=11,
        rope_parameters=rope,
    )


@dataclass(frozen=True, slots=True)
class TrainingOptions:
    """Joint training of the base model.

    Args:
        num_steps: optimiser steps.
        seed: of weights, data and masks.
        num_rows, num_clean, num_noisy: tokens of one batch, see `packing`.
        block_lengths: each sample draws one.
        diffusion_weight: alpha of L = L_AR + alpha L_diff.
        min_mask_rate: lowest mask rate of a block.
        matrix_learning_rate: of the layers' matrices (Muon).
        learning_rate: of embedding, head and norms (AdamW).
        weight_decay: of both.
        warmup_steps: linear warm-up; the last `decay_fraction` of the run decays linearly to zero.
        compiled: fuse the forward with torch.compile.
        model: geometry.
    """

    num_steps: int = 3000
    seed: int = 1
    num_rows: int = 16
    num_clean: int = 256
    num_noisy: int = 208
    block_lengths: tuple[int, ...] = (8, 16, 32)
    diffusion_weight: float = 0.3
    min_mask_rate: float = 0.05
    matrix_learning_rate: float = 0.012
    learning_rate: float = 2e-3
    weight_decay: float = 0.01
    warmup_steps: int = 100
    decay_fraction: float = 0.9
    compiled: bool = False
    model: ModelConfig = field(default_factory=tiny_model_config)

    def __post_init__(self) -> None:
        for name in ("num_steps", "num_rows", "num_clean", "num_noisy", "warmup_steps"):
            if getattr(self, name) < 1:
                raise InvalidInputError(name, getattr(self, name), "a positive integer")
        if not self.block_lengths or min(self.block_lengths) < 2 or max(self.block_lengths) > self.model.block_size:
            raise InvalidInputError("block_lengths", self.block_lengths, f"lengths from 2 to {self.model.block_size}")
        if not 0 < self.min_mask_rate < 1:
            raise InvalidInputError("min_mask_rate", self.min_mask_rate, "a number between 0 and 1")
        if not 0 < self.decay_fraction <= 1:
            raise InvalidInputError("decay_fraction", self.decay_fraction, "a number above 0, at most 1")
        for name in ("diffusion_weight", "matrix_learning_rate", "learning_rate", "weight_decay"):
            if getattr(self, name) < 0:
                raise InvalidInputError(name, getattr(self, name), "a number of at least 0")


def options_fingerprint(options: Any) -> str:
    """Text of all fields of an options dataclass but the run's length, which a resumed run may change."""
    fixed = asdict(options)
    del fixed["num_steps"]
    return repr(sorted(fixed.items()))

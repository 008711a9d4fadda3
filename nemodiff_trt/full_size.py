"""Geometry of the published checkpoints, so that engines can be built without one.

Source: configuration files of Nemotron-Labs-Diffusion 3B, 8B and 14B; technical report arXiv 2607.05722. The adapter's rank and
alpha are those of the 8B, which the other sizes are taken to share; binding a checkpoint checks them.
"""

from __future__ import annotations

from dataclasses import dataclass

from nemodiff_trt.config import ModelConfig, RopeParameters
from nemodiff_trt.errors import InvalidInputError

FULL_SIZE_CONFIGS = tuple(f"nemotron-labs-diffusion-{size}" for size in ("3b", "8b", "14b"))
ADAPTER_RANK, ADAPTER_ALPHA = 128, 512


@dataclass(frozen=True, slots=True)
class _Size:
    """What differs between the sizes."""

    num_hidden_layers: int
    hidden_size: int
    intermediate_size: int
    rope_theta: float


_SIZES = dict(
    zip(
        FULL_SIZE_CONFIGS,
        (_Size(26, 3072, 9216, 1e6), _Size(34, 4096, 14336, 1e6), _Size(40, 5120, 16384, 1e9)),
        strict=True,
    )
)


def published_rope_parameters(rope_theta: float) -> RopeParameters:
    """The rotary fields that all published sizes share, around the one in which they differ."""
    return RopeParameters(
        rope_type="yarn",
        rope_theta=rope_theta,
        factor=16.0,
        original_max_position_embeddings=16384,
        beta_fast=32.0,
        beta_slow=1.0,
        mscale=1.0,
        mscale_all_dim=1.0,
        llama_4_scaling_beta=0.1,
    )


def full_size_config(name: str) -> ModelConfig:
    """Configuration of one of `FULL_SIZE_CONFIGS`.

    Raises:
        InvalidInputError: there is no size of this name.
    """
    if name not in _SIZES:
        raise InvalidInputError("config", name, ", ".join(FULL_SIZE_CONFIGS))
    size = _SIZES[name]
    return ModelConfig(
        num_hidden_layers=size.num_hidden_layers,
        hidden_size=size.hidden_size,
        intermediate_size=size.intermediate_size,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=128,
        vocab_size=131072,
        rms_norm_eps=1e-5,
        max_position_embeddings=262144,
        block_size=32,
        mask_token_id=100,
        bos_token_id=1,
        eos_token_id=11,
        rope_parameters=published_rope_parameters(size.rope_theta),
    )

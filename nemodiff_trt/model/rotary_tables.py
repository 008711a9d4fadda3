"""Rotary tables: YaRN frequencies, attention factor and the query scale by absolute position, all folded into cos and sin.

Sources: YaRN (arXiv 2309.00071, section 3.2, "NTK-by-parts"); the query scale is q *= 1 + beta * ln(1 + floor(pos / original)),
applied after the rotation. A rotation is linear, so the scale lives in the query's own tables and costs nothing per step.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from nemodiff_trt.config import RopeParameters


@dataclass(frozen=True, slots=True)
class RotaryTables:
    """Tables [K, D/2] in one dtype. `query_*` equal `key_*` for all positions below `original_max_position_embeddings`."""

    query_cos: Tensor
    query_sin: Tensor
    key_cos: Tensor
    key_sin: Tensor


def inverse_frequencies(rope: RopeParameters, head_dim: int) -> Tensor:
    """Radians per position of each rotary pair, float64 [D/2]."""
    pair = torch.arange(0, head_dim, 2, dtype=torch.float64)
    base = rope.rope_theta ** (-pair / head_dim)
    if rope.rope_type == "default":
        return base

    def pair_of(num_rotations: float) -> float:
        """Pair index that turns `num_rotations` times over the original context."""
        turns = rope.original_max_position_embeddings / (num_rotations * 2 * math.pi)
        return head_dim * math.log(turns) / (2 * math.log(rope.rope_theta))

    low = max(math.floor(pair_of(rope.beta_fast)), 0)
    high = min(math.ceil(pair_of(rope.beta_slow)), head_dim - 1)
    ramp = ((torch.arange(head_dim // 2, dtype=torch.float64) - low) / max(high - low, 1e-3)).clamp(0, 1)
    return base * (1 - ramp) + base / rope.factor * ramp


def query_scale(rope: RopeParameters, positions: Tensor) -> Tensor:
    """Factor on the rotated query at each absolute position, float64, exactly 1.0 below the original context."""
    if rope.llama_4_scaling_beta == 0:
        return torch.ones_like(positions, dtype=torch.float64)
    periods = torch.div(positions, rope.original_max_position_embeddings, rounding_mode="floor").to(torch.float64)
    return 1 + rope.llama_4_scaling_beta * torch.log1p(periods)


def build_rotary_tables(rope: RopeParameters, head_dim: int, max_positions: int, dtype: torch.dtype) -> RotaryTables:
    """Tables for positions 0 .. `max_positions - 1`, computed in float64 and rounded once to `dtype`."""
    positions = torch.arange(max_positions)
    angles = positions.to(torch.float64)[:, None] * inverse_frequencies(rope, head_dim)[None, :]
    key_cos, key_sin = angles.cos() * rope.attention_factor, angles.sin() * rope.attention_factor
    scale = query_scale(rope, positions)[:, None]
    return RotaryTables(*(table.to(dtype) for table in (key_cos * scale, key_sin * scale, key_cos, key_sin)))

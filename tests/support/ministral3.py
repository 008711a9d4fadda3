"""One step of a decoder and of the Ministral3 of `transformers`, after the same random cache."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from nemodiff_trt.config import ModelConfig
from nemodiff_trt.model import TriModeDecoder


@dataclass(frozen=True, slots=True)
class CachedStep:
    """`input_ids` [B,S] behind `num_cached` random slots; `cached` holds keys and values [B,G,num_cached,D] of each layer."""

    input_ids: Tensor
    num_cached: int
    cached: list[tuple[Tensor, Tensor]]

    @property
    def num_positions(self) -> int:
        return self.num_cached + self.input_ids.shape[1]

    @torch.no_grad()
    def reference_logits(self, reference: Any) -> Tensor:
        """Logits [B,S,V] of a causal model of `transformers`."""
        cache = DynamicCache()
        for layer, (key, value) in enumerate(self.cached):
            cache.update(key, value, layer)
        positions = torch.arange(self.num_cached, self.num_positions).expand(len(self.input_ids), -1)
        logits: Tensor = reference(self.input_ids, position_ids=positions, past_key_values=cache, use_cache=True).logits
        return logits

    @torch.no_grad()
    def decoder_logits(self, decoder: TriModeDecoder) -> Tensor:
        """Logits [B,S,V] of a causal step of ours; its rotary tables reach `num_positions`."""
        batch, step = self.input_ids.shape
        width = self.cached[0][0].shape[1::2]
        slack = torch.zeros(batch, width[0], step, width[1])
        keys = [torch.cat((key, slack), 2) for key, _ in self.cached]
        values = [torch.cat((value, slack), 2) for _, value in self.cached]
        logits: Tensor = decoder(self.input_ids, torch.full((batch,), self.num_cached), keys, values)[0]
        return logits


def random_step(config: ModelConfig, batch: int, num_cached: int, step: int) -> CachedStep:
    """The same tokens and cache at every call."""
    generator = torch.Generator().manual_seed(1)
    input_ids = torch.randint(0, config.vocab_size, (batch, step), generator=generator)
    # Short keys: the many cached ones then share the attention with the few of the step, which carry the positions.
    shape = (batch, config.num_key_value_heads, num_cached, config.head_dim)
    cached = [
        (0.1 * torch.randn(shape, generator=generator), torch.randn(shape, generator=generator))
        for _ in range(config.num_hidden_layers)
    ]
    return CachedStep(input_ids, num_cached, cached)


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """Largest difference in units of the standard deviation of the expected logits."""
    return float((actual - expected).abs().max() / expected.std())

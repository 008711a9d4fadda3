"""A model and an encoder small enough to train in a test."""

from __future__ import annotations

import dataclasses

from nemodiff_trt.training.options import tiny_model_config
from nemodiff_trt.training.samples import SampleEncoder

CONFIG = dataclasses.replace(
    tiny_model_config(),
    num_hidden_layers=2,
    hidden_size=32,
    intermediate_size=48,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    vocab_size=357,
)
# Bytes as tokens: enough to train on, with no tokenizer to build.
ENCODER = SampleEncoder(lambda text: [101 + byte for byte in text.encode()], lambda text, _: text, CONFIG.eos_token_id)


def silent(step: int, entry: dict[str, float]) -> None:
    """Progress nobody watches."""

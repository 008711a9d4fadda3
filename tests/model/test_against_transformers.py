"""`TriModeDecoder` against the Ministral3 of `transformers`, which has the same layers and the same rotary embedding."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import Ministral3Config, Ministral3ForCausalLM

from nemodiff_trt.config import ModelConfig, RopeParameters
from nemodiff_trt.model import TriModeDecoder, build_rotary_tables
from nemodiff_trt.model.rotary_tables import inverse_frequencies
from support.checkpoints import random_decoder, tiny_config
from support.ministral3 import random_step, relative_error

BATCH = 2
# Length of the cache before the step and number of step tokens: the start, and across the end of the original context.
WINDOWS = {"start": (0, 65), "across 16384": (16_380, 71)}
THETAS = (1e6, 1e9)


def published_rope(theta: float) -> RopeParameters:
    """The published fields, where only theta differs between the sizes."""
    return RopeParameters(
        rope_type="yarn",
        rope_theta=theta,
        factor=16.0,
        original_max_position_embeddings=16_384,
        beta_fast=32.0,
        beta_slow=1.0,
        mscale=1.0,
        mscale_all_dim=1.0,
        llama_4_scaling_beta=0.1,
    )


def published_geometry(theta: float) -> ModelConfig:
    """Heads of 32 although hidden / heads is 12: 16 rotary pairs cover unscaled, blended and divided frequencies."""
    return tiny_config(head_dim=32, vocab_size=160, max_position_embeddings=262_144, rope_parameters=published_rope(theta))


def make_reference(config: ModelConfig, decoder: TriModeDecoder) -> Ministral3ForCausalLM:
    """Ministral3 with the weights of `decoder`."""
    names = (
        "num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "head_dim",
        "vocab_size", "rms_norm_eps", "max_position_embeddings",
    )  # fmt: skip
    reference = Ministral3ForCausalLM(
        Ministral3Config(
            **{name: getattr(config, name) for name in names},
            rope_parameters=dataclasses.asdict(config.rope_parameters),
            tie_word_embeddings=False,
            pad_token_id=None,
            attn_implementation="eager",
        )
    )
    renamed = {
        name.replace("encoder.", "model.").replace("diffusion_head", "lm_head"): tensor
        for name, tensor in decoder.state_dict().items()
    }
    reference.load_state_dict(renamed)
    return reference.eval()


class Comparison:
    """Both models on the same tokens, after the same random cache."""

    def __init__(self, theta: float, window: str) -> None:
        self.config = published_geometry(theta)
        self.step = random_step(self.config, BATCH, *WINDOWS[window])
        self.decoder = random_decoder(self.config, self.step.num_positions, adapter_rank=0)

    def expected(self) -> Tensor:
        """Logits [B,S,V] of the reference."""
        return self.step.reference_logits(make_reference(self.config, self.decoder))

    def actual(self, rope: RopeParameters | None = None) -> Tensor:
        """Logits [B,S,V] of the decoder, with the tables of `rope` where given."""
        if rope is not None:
            self.decoder.config = dataclasses.replace(self.config, rope_parameters=rope)
            self.decoder.set_rotary_tables(self.step.num_positions, torch.float32)
        return self.step.decoder_logits(self.decoder)


# At the start the angles are exact enough for fp32 round-off to be all that differs. At 16,450 the reference's fp32 angles are
# off by up to half an ulp of 16,384, 1e-3 rad, and its logits by half of that; ours are rounded once, from float64.
TOLERANCES = {"start": 2e-5, "across 16384": 1e-3}
# A wrong variant must be this many tolerances away, so that neither the comparison nor the variants are vacuous.
MIN_WRONG_TOLERANCES = 30

WRONG_ROPES: dict[str, dict[str, Any]] = {
    "attention factor 1.277": {"mscale_all_dim": 0.0},
    "no query scale": {"llama_4_scaling_beta": 0.0},
    "theta ignored": {"rope_theta": 1e4},
    "plain rotary embedding": {"rope_type": "default"},
    "another ramp": {"beta_fast": 64.0},
}


@pytest.mark.parametrize("theta", THETAS)
@pytest.mark.parametrize("window", WINDOWS)
def test_logits_equal_the_reference_and_no_wrong_variant_does(theta: float, window: str) -> None:
    comparison = Comparison(theta, window)
    expected = comparison.expected()
    tolerance = TOLERANCES[window]
    assert relative_error(comparison.actual(), expected) < tolerance
    for name, change in WRONG_ROPES.items():
        error = relative_error(comparison.actual(dataclasses.replace(published_rope(theta), **change)), expected)
        if name == "no query scale" and window == "start":
            assert error < tolerance, "the query scale is 1 below 16,384"
        else:
            assert error > MIN_WRONG_TOLERANCES * tolerance, name


def test_plain_rotary_embedding_keeps_the_query_scale() -> None:
    comparison = Comparison(THETAS[0], "across 16384")
    comparison.config = dataclasses.replace(
        comparison.config, rope_parameters=dataclasses.replace(published_rope(THETAS[0]), rope_type="default")
    )
    actual = comparison.actual(comparison.config.rope_parameters)
    assert relative_error(actual, comparison.expected()) < TOLERANCES["across 16384"]


@pytest.mark.parametrize("theta", THETAS)
@pytest.mark.parametrize("head_dim", [32, 128])
def test_frequencies_equal_the_reference(theta: float, head_dim: int) -> None:
    config = dataclasses.replace(published_geometry(theta), head_dim=head_dim)
    decoder = random_decoder(config, 1, adapter_rank=0)
    reference = make_reference(config, decoder).model.rotary_emb
    assert reference.attention_scaling == config.rope_parameters.attention_factor == 1.0
    ours = inverse_frequencies(config.rope_parameters, head_dim)
    # The reference computes them in fp32, through a power.
    torch.testing.assert_close(reference.inv_freq.double(), ours, rtol=2e-6, atol=0.0)


def test_query_scale_starts_at_the_end_of_the_original_context() -> None:
    tables = build_rotary_tables(published_rope(1e6), 32, 32_769, torch.float64)
    scale = tables.query_cos.hypot(tables.query_sin)[:, 0]
    assert torch.equal(tables.query_cos[:16_384], tables.key_cos[:16_384])
    assert torch.equal(tables.query_sin[:16_384], tables.key_sin[:16_384])
    expected = [1.0, 1 + 0.1 * math.log(2), 1 + 0.1 * math.log(2), 1 + 0.1 * math.log(3)]
    torch.testing.assert_close(scale[[16_383, 16_384, 32_767, 32_768]], torch.tensor(expected, dtype=torch.float64))

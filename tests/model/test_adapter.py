"""The draft adapter changes drafts and nothing else."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from nemodiff_trt.model import TriModeDecoder
from support.checkpoints import random_decoder, tiny_config


@pytest.fixture(scope="module")
def decoder() -> TriModeDecoder:
    return random_decoder(tiny_config(), 16).double()


def step(decoder: TriModeDecoder, causal: bool, use_adapter: bool) -> Tensor:
    config = decoder.config
    shape = (2, config.num_key_value_heads, 16, config.head_dim)
    generator = torch.Generator().manual_seed(2)
    keys, values = ([torch.randn(shape, dtype=torch.float64, generator=generator) for _ in range(2)] for _ in range(2))
    ids = torch.tensor([[5, 100, 100, 100], [6, 100, 100, 100]])
    logits: Tensor = decoder(ids, torch.tensor([3, 9]), keys, values, causal, use_adapter)[0]
    return logits


def without_adapter(decoder: TriModeDecoder) -> TriModeDecoder:
    bare = copy.deepcopy(decoder)
    for layer in bare.decoder_layers:
        layer.self_attn.adapter = None
    return bare


def test_draft_logits_change_and_causal_logits_do_not(decoder: TriModeDecoder) -> None:
    bare = without_adapter(decoder)
    assert decoder.has_adapter
    assert not bare.has_adapter
    assert torch.equal(step(decoder, causal=True, use_adapter=False), step(bare, causal=True, use_adapter=False))
    assert torch.equal(step(decoder, causal=False, use_adapter=False), step(bare, causal=False, use_adapter=False))
    change = step(decoder, causal=False, use_adapter=True) - step(bare, causal=False, use_adapter=False)
    assert change.abs().amax(-1).min() > 1e-3


def test_the_branch_equals_a_merged_output_projection(decoder: TriModeDecoder) -> None:
    merged = without_adapter(decoder)
    for layer, original in zip(merged.decoder_layers, decoder.decoder_layers, strict=True):
        adapter = original.self_attn.adapter
        assert adapter is not None
        layer.self_attn.o_proj.weight += adapter.scale * adapter.lora_B.weight @ adapter.lora_A.weight
    drafted = step(decoder, causal=False, use_adapter=True)
    torch.testing.assert_close(drafted, step(merged, causal=False, use_adapter=False), rtol=1e-10, atol=1e-10)


def test_a_fresh_adapter_changes_nothing() -> None:
    decoder = random_decoder(tiny_config(), 16, adapter_rank=0).double()
    decoder.attach_adapter(rank=2, scale=4.0)
    assert torch.equal(step(decoder, causal=False, use_adapter=True), step(decoder, causal=False, use_adapter=False))


def test_a_draft_without_an_adapter_is_refused(decoder: TriModeDecoder) -> None:
    with pytest.raises(RuntimeError, match="without an adapter"):
        step(without_adapter(decoder), causal=False, use_adapter=True)

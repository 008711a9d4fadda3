"""The decoder's steps over a cache against one dense recomputation without a cache, in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from nemodiff_trt.config import ModelConfig
from nemodiff_trt.model import TriModeDecoder
from nemodiff_trt.model.decoder import DecoderLayer
from support.checkpoints import random_decoder, tiny_config

CAPACITY = 48
# float64 with sums in another order.
TOLERANCE = 1e-10

Caches = tuple[list[Tensor], list[Tensor]]


@pytest.fixture(scope="module")
def decoder() -> TriModeDecoder:
    return random_decoder(tiny_config(), CAPACITY).double()


def rotate(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn pairs (i, i + D/2) of `heads` [T,N,D] by complex multiplication."""
    first, second = heads.chunk(2, -1)
    turned = torch.complex(first, second) * torch.complex(cos, sin)[:, None, :]
    return torch.cat((turned.real, turned.imag), -1)


def normalise(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * weight


def dense_attention(decoder: TriModeDecoder, layer: DecoderLayer, x: Tensor, visible: Tensor, drafting: Tensor) -> Tensor:
    """Every head by itself with an explicit mask. `drafting` [T,1] says which rows take the adapter."""
    config, count = decoder.config, x.shape[0]
    attention = layer.self_attn
    query = (x @ attention.q_proj.weight.T).view(count, config.num_attention_heads, config.head_dim)
    key = (x @ attention.k_proj.weight.T).view(count, config.num_key_value_heads, config.head_dim)
    value = (x @ attention.v_proj.weight.T).view(count, config.num_key_value_heads, config.head_dim)
    query = rotate(query, decoder.query_cos[:count], decoder.query_sin[:count])
    key = rotate(key, decoder.key_cos[:count], decoder.key_sin[:count])
    group = config.num_attention_heads // config.num_key_value_heads
    heads = []
    for head in range(config.num_attention_heads):
        scores = query[:, head] @ key[:, head // group].T / config.head_dim**0.5
        heads.append(scores.masked_fill(~visible, -torch.inf).softmax(-1) @ value[:, head // group])
    mixed = torch.cat(heads, -1)
    output: Tensor = mixed @ attention.o_proj.weight.T
    if attention.adapter is not None:
        branch = mixed @ attention.adapter.lora_A.weight.T @ attention.adapter.lora_B.weight.T
        output = output + attention.adapter.scale * branch * drafting
    return output


def dense_logits(decoder: TriModeDecoder, ids: Tensor, visible: Tensor, drafting: Tensor) -> Tensor:
    """Logits [T,V] of one sequence `ids` [T] where row t sees the columns `visible[t]`."""
    eps = decoder.config.rms_norm_eps
    x = decoder.encoder.embed_tokens.weight[ids]
    for layer in decoder.decoder_layers:
        inner = normalise(x, layer.input_layernorm.weight, eps)
        x = x + dense_attention(decoder, layer, inner, visible, drafting)
        inner = normalise(x, layer.post_attention_layernorm.weight, eps)
        gate = inner @ layer.mlp.gate_proj.weight.T
        x = x + (gate * gate.sigmoid() * (inner @ layer.mlp.up_proj.weight.T)) @ layer.mlp.down_proj.weight.T
    return normalise(x, decoder.encoder.norm.weight, eps) @ decoder.diffusion_head.weight.T


def expected_step(decoder: TriModeDecoder, prefix: Tensor, block: Tensor, causal: bool, draft: bool = False) -> Tensor:
    """Logits [S,V] of `block` after the committed tokens `prefix`, which see only what precedes them."""
    count = len(prefix) + len(block)
    visible = torch.ones(count, count, dtype=torch.bool).tril()
    drafting = torch.zeros(count, 1, dtype=torch.float64)
    if not causal:
        visible[len(prefix) :] = True
    if draft:
        drafting[len(prefix) :] = 1.0
    return dense_logits(decoder, torch.cat((prefix, block)), visible, drafting)[len(prefix) :]


def empty_caches(config: ModelConfig, batch: int) -> Caches:
    shape = (batch, config.num_key_value_heads, CAPACITY, config.head_dim)
    layers = range(config.num_hidden_layers)
    return [torch.zeros(shape, dtype=torch.float64) for _ in layers], [torch.zeros(shape, dtype=torch.float64) for _ in layers]


def fill_after(caches: Caches, lengths: Tensor, amount: float) -> Caches:
    """Caches with every slot at and after each sequence's length overwritten."""
    free = torch.arange(CAPACITY)[None, None, :, None] >= lengths[:, None, None, None]
    keys, values = ([tensor.masked_fill(free, amount) for tensor in part] for part in caches)
    return keys, values


class Ragged:
    """Sequences of different lengths, prefilled together with padding on the right."""

    def __init__(self, decoder: TriModeDecoder, lengths: tuple[int, ...], step: int, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        vocab_size = decoder.config.vocab_size
        self.decoder = decoder
        self.lengths = torch.tensor(lengths)
        self.prompts = torch.randint(0, vocab_size, (len(lengths), max(*lengths, 1)), generator=generator)
        self.blocks = torch.randint(0, vocab_size, (len(lengths), step), generator=generator)
        start = torch.zeros(len(lengths), dtype=torch.int64)
        self.prefill, *caches = decoder(self.prompts, start, *empty_caches(decoder.config, len(lengths)))
        self.caches: Caches = (caches[0], caches[1])

    def prefix(self, row: int) -> Tensor:
        return self.prompts[row, : self.lengths[row]]

    def step(self, causal: bool, draft: bool = False, caches: Caches | None = None) -> Tensor:
        logits: Tensor = self.decoder(self.blocks, self.lengths, *(caches or self.caches), causal, draft)[0]
        return logits


def assert_equal(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.parametrize("lengths", [(7,), (0, 3, 11), (36, 1, 30, 36)])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("draft", [True, False])
@pytest.mark.parametrize("step", [1, 5])
def test_a_step_equals_the_dense_recomputation(
    decoder: TriModeDecoder, lengths: tuple[int, ...], causal: bool, draft: bool, step: int
) -> None:
    ragged = Ragged(decoder, lengths, step)
    logits = ragged.step(causal, draft)
    for row in range(len(lengths)):
        assert_equal(logits[row], expected_step(decoder, ragged.prefix(row), ragged.blocks[row], causal, draft))


def test_prefill_of_padded_prompts_equals_each_prompt_alone(decoder: TriModeDecoder) -> None:
    ragged = Ragged(decoder, (4, 13, 1), 2)
    nothing = torch.empty(0, dtype=torch.int64)
    for row, length in enumerate((4, 13, 1)):
        assert_equal(ragged.prefill[row, :length], expected_step(decoder, nothing, ragged.prefix(row), causal=True))


@pytest.mark.parametrize("causal", [True, False])
def test_slots_after_the_length_have_no_influence(decoder: TriModeDecoder, causal: bool) -> None:
    ragged = Ragged(decoder, (3, 12), 4)
    logits = ragged.step(causal)
    for amount in (1e6, -1e6):
        assert torch.equal(ragged.step(causal, caches=fill_after(ragged.caches, ragged.lengths, amount)), logits)
    # The same garbage one slot earlier is a committed token, and must be seen.
    assert not torch.allclose(ragged.step(causal, caches=fill_after(ragged.caches, ragged.lengths - 1, 1e6)), logits)


def test_directions_differ_exactly_where_they_should(decoder: TriModeDecoder) -> None:
    ragged = Ragged(decoder, (3, 12), 4)
    causal, bidirectional = ragged.step(causal=True), ragged.step(causal=False)
    assert (causal[:, :-1] - bidirectional[:, :-1]).abs().amax(-1).min() > 1e-3
    ragged.blocks[:, -1] = (ragged.blocks[:, -1] + 1) % decoder.config.vocab_size
    assert torch.equal(ragged.step(causal=True)[:, :-1], causal[:, :-1])
    assert (ragged.step(causal=False)[:, :-1] - bidirectional[:, :-1]).abs().amax(-1).min() > 1e-3


def test_a_draft_leaves_no_trace_once_the_block_is_committed(decoder: TriModeDecoder) -> None:
    ragged = Ragged(decoder, (3, 12), 4)
    _, *drafted = decoder(ragged.blocks, ragged.lengths, *ragged.caches, False, True)
    direct = decoder(ragged.blocks, ragged.lengths, *ragged.caches)
    after_draft = decoder(ragged.blocks, ragged.lengths, drafted[0], drafted[1])
    assert torch.equal(after_draft[0], direct[0])
    for one, other in zip(after_draft[1] + after_draft[2], direct[1] + direct[2], strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("accepted", [(1, 1), (4, 2), (2, 4)])
def test_cropping_is_setting_a_number(decoder: TriModeDecoder, accepted: tuple[int, int]) -> None:
    """After a block of 4, keep another number of tokens in each sequence and go on."""
    ragged = Ragged(decoder, (3, 12), 4)
    _, keys, values = decoder(ragged.blocks, ragged.lengths, *ragged.caches)
    lengths = ragged.lengths + torch.tensor(accepted)
    following = torch.tensor([[5, 100, 100], [6, 100, 100]])
    logits, _, _ = decoder(following, lengths, keys, values, False)
    for row in range(2):
        prefix = torch.cat((ragged.prefix(row), ragged.blocks[row, : accepted[row]]))
        assert_equal(logits[row], expected_step(decoder, prefix, following[row], causal=False))


def test_token_by_token_equals_chunks_equals_at_once(decoder: TriModeDecoder) -> None:
    ids = torch.randint(0, decoder.config.vocab_size, (2, 40), generator=torch.Generator().manual_seed(5))
    whole = decoder(ids, torch.zeros(2, dtype=torch.int64), *empty_caches(decoder.config, 2))[0]
    for chunk in (1, 7):
        keys, values = empty_caches(decoder.config, 2)
        pieces = []
        for start in range(0, 40, chunk):
            piece, keys, values = decoder(ids[:, start : start + chunk], torch.full((2,), start), keys, values)
            pieces.append(piece)
        assert_equal(torch.cat(pieces, 1), whole)

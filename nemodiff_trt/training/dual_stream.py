"""One differentiable forward over clean and noisy streams with the decoder's own weights: no cache, any visibility mask."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from nemodiff_trt.model import TriModeDecoder
from nemodiff_trt.model.decoder import Attention, RMSNorm

HiddenStates = Callable[..., Tensor]


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Half-split rotation of `x` [B,N,T,D] by tables [B,1,T,D/2]."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def _attend(
    attention: Attention, x: Tensor, tables: tuple[Tensor, ...], biases: tuple[Tensor, Tensor], use_adapter: Tensor | None
) -> Tensor:
    """Attention of one layer; `biases` of the clean stream over itself and of the noisy stream over both."""
    batch, length, _ = x.shape
    num_heads, num_kv_heads = attention.num_heads, attention.num_kv_heads

    def split(t: Tensor, count: int) -> Tensor:
        return t.view(batch, length, count, -1).transpose(1, 2)

    query = _rotate(split(attention.q_proj(x), num_heads), tables[0], tables[1])
    key = _rotate(split(attention.k_proj(x), num_kv_heads), tables[2], tables[3])
    value = split(attention.v_proj(x), num_kv_heads)
    # Expanded heads keep the fused CPU kernel, which has no grouped form under autograd.
    key, value = (t.repeat_interleave(num_heads // num_kv_heads, dim=1) for t in (key, value))
    key, value = key.to(query.dtype), value.to(query.dtype)
    num_clean = biases[0].shape[-1]
    clean, noisy = query[:, :, :num_clean], query[:, :, num_clean:]
    mixed = functional.scaled_dot_product_attention(clean, key[:, :, :num_clean], value[:, :, :num_clean], attn_mask=biases[0])
    if noisy.shape[2] > 0:
        mixed = torch.cat((mixed, functional.scaled_dot_product_attention(noisy, key, value, attn_mask=biases[1])), dim=2)
    mixed = mixed.transpose(1, 2).reshape(batch, length, -1)
    plain = attention.project_output(mixed, use_adapter=False)
    if use_adapter is None:
        return plain
    return torch.where(use_adapter, attention.project_output(mixed, use_adapter=True), plain)


def _norm(x: Tensor, norm: RMSNorm) -> Tensor:
    return functional.rms_norm(x, norm.weight.shape, norm.weight, norm.eps)


def hidden_states(
    decoder: TriModeDecoder,
    ids: Tensor,
    positions: Tensor,
    visible: Tensor,
    num_clean: int,
    use_adapter: Tensor | None = None,
) -> Tensor:
    """Final normalised hidden states [B,T,hidden].

    Args:
        decoder: its parameters are used as they are; gradients flow into those that ask for them.
        ids: int64 [B,T].
        positions: int64 [B,T], rotary position of each token.
        visible: bool [B,T,T], query sees key.
        num_clean: tokens of the clean stream, which never sees the noisy one: a third of the attention need not be computed.
        use_adapter: bool [B,T,1], True where the draft adapter applies; None leaves it out everywhere.
    """
    x = decoder.encoder.embed_tokens(ids)
    tables = tuple(
        table[positions][:, None] for table in (decoder.query_cos, decoder.query_sin, decoder.key_cos, decoder.key_sin)
    )
    bias = torch.zeros(visible.shape, dtype=torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype)
    bias = bias.masked_fill(~visible, -torch.inf)[:, None]
    biases = bias[:, :, :num_clean, :num_clean].contiguous(), bias[:, :, num_clean:].contiguous()
    for layer in decoder.decoder_layers:
        x = x + _attend(layer.self_attn, _norm(x, layer.input_layernorm), tables, biases, use_adapter)
        x = x + layer.mlp(_norm(x, layer.post_attention_layernorm))
    return _norm(x, decoder.encoder.norm)


def choose_forward(compiled: bool) -> HiddenStates:
    """`hidden_states`, or the same function fused by torch.compile: a quarter faster on a CPU, and wants a C++ compiler."""
    return torch.compile(hidden_states, dynamic=False) if compiled else hidden_states

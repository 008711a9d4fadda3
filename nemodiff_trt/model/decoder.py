"""`TriModeDecoder`: the model in eager torch, oracle of every engine and source of the one capture.

Module names equal tensor names of the checkpoint. All heavy lifting goes through `torch.ops.nemodiff`, so a captured graph
holds one node per operation and no view or symbolic-size arithmetic. Axis letters: see `nemodiff_trt.contract`.
"""

from __future__ import annotations

from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from nemodiff_trt.config import ModelConfig
from nemodiff_trt.model.rotary_tables import build_rotary_tables

ops = torch.ops.nemodiff


class LayoutTensors(NamedTuple):
    """Order among the tokens of a step whose tokens do not simply follow each other.

    `position_offset` int64 [B,S]: positions are cache_length + this. `step_mask` bool [B,S,S]: query s sees step token t, and
    all of the valid cache. `adapter_rows` fp32 [B,S]: 1 where the draft adapter applies, 0 where it does not.
    """

    position_offset: Tensor
    step_mask: Tensor
    adapter_rows: Tensor


class RMSNorm(nn.Module):
    """Scale of a root mean square normalisation."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return ops.rms_norm(x, self.weight, self.eps)  # type: ignore[no-any-return]


class LowRankAdapter(nn.Module):
    """PEFT low-rank branch of one linear layer: `scale * (x @ A.T) @ B.T`, A [r, in], B [out, r]."""

    def __init__(self, in_features: int, out_features: int, rank: int, scale: float) -> None:
        super().__init__()
        self.lora_A = nn.Linear(in_features, rank, bias=False)
        self.lora_B = nn.Linear(rank, out_features, bias=False)
        self.scale = scale
        nn.init.zeros_(self.lora_B.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.lora_B(self.lora_A(x)) * self.scale  # type: ignore[no-any-return]


class Attention(nn.Module):
    """Grouped-query attention over a linear cache. `adapter` is None until a draft adapter is attached."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.num_heads, self.num_kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.q_proj = nn.Linear(config.hidden_size, config.query_width, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, config.key_value_width, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, config.key_value_width, bias=False)
        self.o_proj = nn.Linear(config.query_width, config.hidden_size, bias=False)
        self.adapter: LowRankAdapter | None = None

    def attach_adapter(self, rank: int, scale: float) -> None:
        """Give o_proj a low-rank branch that adds nothing yet, where and in what dtype its weight is."""
        weight = self.o_proj.weight
        adapter = LowRankAdapter(weight.shape[1], weight.shape[0], rank, scale)
        self.adapter = adapter.to(device=weight.device, dtype=weight.dtype)

    def project_output(self, mixed: Tensor, use_adapter: bool, rows: Tensor | None = None) -> Tensor:
        """o_proj, plus the low-rank branch in a draft step, times `rows` [B,S]. `mixed` [B,S,H*D] -> [B,S,hidden]."""
        output: Tensor = self.o_proj(mixed)
        if use_adapter:
            if self.adapter is None:
                raise RuntimeError("a draft step was asked of a decoder without an adapter")
            branch = self.adapter(mixed)
            output = output + (branch if rows is None else branch * rows[..., None].to(branch.dtype))
        return output

    def forward(self, x: Tensor, step: Step, past_key: Tensor, past_value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        query = ops.rotary(self.q_proj(x), step.query_cos, step.query_sin, step.positions, self.num_heads)
        key = ops.rotary(self.k_proj(x), step.key_cos, step.key_sin, step.positions, self.num_kv_heads)
        present_key = ops.cache_update(past_key, key, step.cache_length)
        present_value = ops.cache_update(past_value, self.v_proj(x), step.cache_length)
        keys_values = (present_key, present_value, step.cache_length)
        if step.layout is None:
            mixed = ops.attention(query, *keys_values, self.num_heads, step.causal)
            return self.project_output(mixed, step.use_adapter), present_key, present_value
        mixed = ops.masked_attention(query, *keys_values, step.layout.step_mask, self.num_heads)
        return self.project_output(mixed, step.use_adapter, step.layout.adapter_rows), present_key, present_value


class MLP(nn.Module):
    """SiLU-gated feed-forward."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(functional.silu(self.gate_proj(x)) * self.up_proj(x))  # type: ignore[no-any-return]


class DecoderLayer(nn.Module):
    """Attention and feed-forward, each behind its norm and added to the residual."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, step: Step, past_key: Tensor, past_value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mixed, present_key, present_value = self.self_attn(self.input_layernorm(x), step, past_key, past_value)
        x = x + mixed
        return x + self.mlp(self.post_attention_layernorm(x)), present_key, present_value


class Encoder(nn.Module):
    """Embedding, layers and final norm; named as in the checkpoint although every step decodes."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)


class Step:
    """What every layer of one step shares: positions, tables, write index, direction or layout, adapter switch."""

    __slots__ = (
        "cache_length", "causal", "key_cos", "key_sin", "layout", "positions", "query_cos", "query_sin", "use_adapter",
    )  # fmt: skip

    def __init__(
        self,
        decoder: TriModeDecoder,
        input_ids: Tensor,
        cache_length: Tensor,
        causal: bool,
        use_adapter: bool,
        layout: LayoutTensors | None,
    ):
        if layout is None:
            self.positions = ops.step_positions(input_ids, cache_length)
        else:
            self.positions = cache_length[:, None] + layout.position_offset
        self.query_cos, self.query_sin = decoder.query_cos, decoder.query_sin
        self.key_cos, self.key_sin = decoder.key_cos, decoder.key_sin
        self.cache_length, self.causal, self.use_adapter, self.layout = cache_length, causal, use_adapter, layout


class TriModeDecoder(nn.Module):
    """One set of weights, three modes: the direction of attention and the adapter are arguments of a step."""

    query_cos: Tensor
    query_sin: Tensor
    key_cos: Tensor
    key_sin: Tensor

    def __init__(self, config: ModelConfig, max_positions: int) -> None:
        """Random weights; `max_positions` rows of rotary tables, at least the cache capacity K."""
        # Registers torch.ops.nemodiff. Not at module level: the core imports no sibling, and `ops` resolves when first used.
        import nemodiff_trt.plugins  # noqa: F401

        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.diffusion_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.set_rotary_tables(max_positions, torch.get_default_dtype())

    def set_rotary_tables(self, max_positions: int, dtype: torch.dtype) -> None:
        """Compute the tables (again), on the current default device: a decoder made on `meta` needs real ones to run."""
        tables = build_rotary_tables(self.config.rope_parameters, self.config.head_dim, max_positions, dtype)
        for name in ("query_cos", "query_sin", "key_cos", "key_sin"):
            self.register_buffer(name, getattr(tables, name), persistent=False)

    def attach_adapter(self, rank: int, scale: float) -> None:
        """Give every o_proj a zero low-rank branch; fill it through `load_state_dict` or training."""
        for layer in self.decoder_layers:
            layer.self_attn.attach_adapter(rank, scale)

    @property
    def decoder_layers(self) -> list[DecoderLayer]:
        """The layers with their own type, which `nn.ModuleList` hides."""
        return [cast(DecoderLayer, layer) for layer in self.encoder.layers]

    @property
    def has_adapter(self) -> bool:
        return self.decoder_layers[0].self_attn.adapter is not None

    def forward(
        self,
        input_ids: Tensor,
        cache_length: Tensor,
        past_keys: list[Tensor],
        past_values: list[Tensor],
        causal: bool = True,
        use_adapter: bool = False,
        layout: LayoutTensors | None = None,
    ) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """Run one step.

        Args:
            input_ids: int64 [B,S].
            cache_length: int64 [B], tokens valid before the step.
            past_keys: one [B,G,K,D] per layer.
            past_values: one [B,G,K,D] per layer.
            causal: lower-right causal attention, or every step token sees all.
            use_adapter: add the draft adapter's branch.
            layout: takes the place of `causal`, of consecutive positions and of one adapter switch for all tokens.

        Returns:
            logits [B,S,V], and the caches with the step written after `cache_length`.
        """
        step = Step(self, input_ids, cache_length, causal, use_adapter, layout)
        x = self.encoder.embed_tokens(input_ids)
        present_keys, present_values = [], []
        for layer, past_key, past_value in zip(self.decoder_layers, past_keys, past_values, strict=True):
            x, present_key, present_value = layer(x, step, past_key, past_value)
            present_keys.append(present_key)
            present_values.append(present_value)
        return self.diffusion_head(self.encoder.norm(x)), present_keys, present_values

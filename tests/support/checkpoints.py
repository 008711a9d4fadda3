"""Tiny random checkpoints of the published layout, with a byte-level tokenizer and a chat template."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from nemodiff_trt.checkpoint import AdapterSettings, write_checkpoint
from nemodiff_trt.config import ModelConfig, RopeParameters
from nemodiff_trt.model import TriModeDecoder

# Ids of the published layout; every other id below FIRST_BYTE_ID is a reserved token, as there.
SPECIAL_IDS = {
    "<unk>": 0,
    "<s>": 1,
    "</s>": 2,
    "<|im_start|>": 10,
    "<|im_end|>": 11,
    "<think>": 12,
    "</think>": 13,
    "<mask>": 100,
}
FIRST_BYTE_ID = 128
TINY_VOCAB_SIZE = 400
# Learned pairs after the 256 bytes: one makes a word, one joins two thirds of a three-byte character (E2 82 of the euro sign).
MERGES = (("t", "h"), ("th", "e"), ("a", "n"), ("â", "Ĥ"))

CHAT_TEMPLATE = """\
{%- if messages[0].role != 'system' -%}
<|im_start|>system
<|im_end|>
{% endif -%}
{%- for message in messages -%}
{%- if message.role not in ['system', 'user', 'assistant'] -%}
{{ raise_exception('unknown role ' ~ message.role) }}
{%- endif -%}
<|im_start|>{{ message.role }}
{{ message.content }}<|im_end|>
{% endfor -%}
{%- if add_generation_prompt -%}
<|im_start|>assistant
{% if enable_thinking -%}
<think>
{% else -%}
<think></think>
{%- endif -%}
{%- endif -%}
"""


def tiny_config(**changes: Any) -> ModelConfig:
    """Two layers; head_dim is not hidden / heads, and YaRN and the query scale start to matter at position 32."""
    rope = RopeParameters(
        rope_type="yarn",
        rope_theta=1e4,
        factor=16.0,
        original_max_position_embeddings=32,
        beta_fast=4.0,
        beta_slow=1.0,
        mscale=1.0,
        mscale_all_dim=1.0,
        llama_4_scaling_beta=0.1,
    )
    config = ModelConfig(
        num_hidden_layers=2,
        hidden_size=48,
        intermediate_size=96,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        vocab_size=TINY_VOCAB_SIZE,
        rms_norm_eps=1e-5,
        max_position_embeddings=512,
        block_size=8,
        mask_token_id=100,
        bos_token_id=1,
        eos_token_id=11,
        rope_parameters=rope,
    )
    return dataclasses.replace(config, **changes)


def random_decoder(config: ModelConfig, max_positions: int, seed: int = 0, adapter_rank: int = 4) -> TriModeDecoder:
    """Random fp32 decoder whose logits differ widely, with an adapter that is not zero unless `adapter_rank` is 0."""
    generator = torch.Generator().manual_seed(seed)
    decoder = TriModeDecoder(config, max_positions)
    if adapter_rank:
        decoder.attach_adapter(adapter_rank, scale=4.0)
    with torch.no_grad():
        for name, parameter in decoder.named_parameters():
            if parameter.ndim == 1:
                parameter.copy_(1 + 0.1 * torch.randn(parameter.shape, generator=generator))
            else:
                gain = 1.0 if "embed_tokens" in name else 1.5 * parameter.shape[1] ** -0.5
                parameter.copy_(gain * torch.randn(parameter.shape, generator=generator))
    return decoder.requires_grad_(False).eval()


def write_tokenizer(directory: Path) -> None:
    """Byte-level tokenizer with the special ids of the published layout, and its chat template."""
    special = {number: text for text, number in SPECIAL_IDS.items()}
    vocabulary = {special.get(number, f"<SPECIAL_{number}>"): number for number in range(FIRST_BYTE_ID)}
    # The byte alphabet as printable characters, in a fixed order.
    texts = sorted(pre_tokenizers.ByteLevel.alphabet()) + ["".join(pair) for pair in MERGES]
    vocabulary |= {text: FIRST_BYTE_ID + index for index, text in enumerate(texts)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=list(MERGES), unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    visible = ("<think>", "</think>")
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in SPECIAL_IDS if text not in visible])
    tokenizer.add_tokens([AddedToken(text, special=False) for text in visible])
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(directory / "tokenizer.json"))
    content = {
        "bos_token": "<s>",
        "eos_token": "<|im_end|>",
        "unk_token": "<unk>",
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(content), encoding="utf-8")
    (directory / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")


def random_checkpoint(directory: Path, config: ModelConfig | None = None, seed: int = 0, adapter_rank: int = 4) -> Path:
    """Write a whole checkpoint (BF16 weights, adapter unless `adapter_rank` is 0, tokenizer) and return its folder."""
    config = config or tiny_config()
    decoder = random_decoder(config, max_positions=1, seed=seed, adapter_rank=adapter_rank)
    settings = AdapterSettings(adapter_rank, 4.0 * adapter_rank) if adapter_rank else None
    write_checkpoint(directory, config, decoder.state_dict(), settings)
    write_tokenizer(directory)
    return directory

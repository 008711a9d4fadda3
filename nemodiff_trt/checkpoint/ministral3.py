"""Ministral3: the causal half of the model under the names that other servers know.

The two layouts hold the same matrices under other names, and the same facts in another `config.json`. Source:
`transformers`, model type ministral3, which has YaRN and the query scale of the published checkpoints.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from nemodiff_trt.config import MODEL_TYPE, ModelConfig, RopeParameters

MINISTRAL3_MODEL_TYPE = "ministral3"
ARCHITECTURE = "Ministral3ForCausalLM"

_RENAMED = (("encoder.", "model."), ("diffusion_head.", "lm_head."))
_FACTS = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
    "head_dim", "max_position_embeddings", "rms_norm_eps", "bos_token_id", "eos_token_id",
)  # fmt: skip
# Facts that a causal model has no use for. Loaders keep unknown keys, so a quantised copy still says how to diffuse.
_DIFFUSION_FACTS = ("block_size", "mask_token_id")
_DIFFUSION_PARADIGM = {"dlm_paradigm": "bidirectional"}


def to_ministral3_name(name: str) -> str:
    """Name of a decoder tensor or module in a Ministral3 checkpoint."""
    return _replace_prefix(name, _RENAMED)


def to_decoder_name(name: str) -> str:
    """Name of a Ministral3 tensor or module in the decoder; other names stay as they are."""
    return _replace_prefix(name, tuple((new, old) for old, new in _RENAMED))


def _replace_prefix(name: str, pairs: tuple[tuple[str, str], ...]) -> str:
    # Modules end without the dot that their tensors' names have after them.
    for old, new in pairs:
        if f"{name}.".startswith(old):
            return f"{new}{f'{name}.'[len(old) :]}"[:-1]
    return name


def to_ministral3_config(config: ModelConfig, dtype: str) -> dict[str, Any]:
    """Content of `config.json`; `dtype` is that of the weights, as torch spells it.

    Three keys are there for servers that do not read them from `rope_parameters`: vLLM takes the query scale from
    `llama_4_scaling` and turns its own YaRN magnitude off by `apply_yarn_scaling`, SGLang takes the start of the query scale
    from `original_max_position_embeddings`.
    """
    rope = config.rope_parameters
    original = rope.original_max_position_embeddings
    return {
        "architectures": [ARCHITECTURE],
        "model_type": MINISTRAL3_MODEL_TYPE,
        "dtype": dtype,
        **{name: getattr(config, name) for name in _FACTS},
        # Left out, it would be a token of this vocabulary.
        "pad_token_id": None,
        "hidden_act": "silu",
        "attention_dropout": 0.0,
        "sliding_window": None,
        "tie_word_embeddings": False,
        "use_cache": True,
        "rope_parameters": _rope_parameters(rope),
        "original_max_position_embeddings": original,
        "llama_4_scaling": {"original_max_position_embeddings": original, "beta": rope.llama_4_scaling_beta},
        **{name: getattr(config, name) for name in _DIFFUSION_FACTS},
        **_DIFFUSION_PARADIGM,
    }


def _rope_parameters(rope: RopeParameters) -> dict[str, Any]:
    # The key means a factor of 1.0 on cos and sin, so it must not stand beside another one.
    is_neutral = rope.rope_type == "yarn" and rope.attention_factor == 1.0
    return dataclasses.asdict(rope) | ({"apply_yarn_scaling": False} if is_neutral else {})


def from_ministral3_config(raw: dict[str, Any]) -> dict[str, Any]:
    """Content of a Ministral3 `config.json` as `ModelConfig.from_dict` takes it; facts it lacks stay missing there."""
    rope = raw.get("rope_parameters")
    if isinstance(rope, dict):
        # The second place for the context length is what some writers add; the key above is ours.
        rope = {name: value for name, value in rope.items() if name not in ("apply_yarn_scaling", "max_position_embeddings")}
    return {**raw, "model_type": MODEL_TYPE, "rope_parameters": rope}

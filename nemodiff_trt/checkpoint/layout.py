"""Names and shapes of every tensor in a checkpoint of the published layout, derived from its configuration.

Linear weights are [out, in]. The adapter follows the file format of PEFT (`adapter_model.safetensors`).
"""

from __future__ import annotations

from collections.abc import Callable

from nemodiff_trt.config import ModelConfig

WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
ADAPTER_DIR = "linear_spec_lora"
ADAPTER_CONFIG_FILE = "adapter_config.json"
ADAPTER_WEIGHTS_FILE = "adapter_model.safetensors"
ADAPTER_TARGET = "o_proj"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")

_ADAPTER_PREFIX = "base_model.model."


def decoder_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Shape of every decoder tensor by name, embedding first, head last."""
    hidden = config.hidden_size
    shapes: dict[str, tuple[int, ...]] = {"encoder.embed_tokens.weight": (config.vocab_size, hidden)}
    in_layer = {
        "input_layernorm": (hidden,),
        "self_attn.q_proj": (config.query_width, hidden),
        "self_attn.k_proj": (config.key_value_width, hidden),
        "self_attn.v_proj": (config.key_value_width, hidden),
        "self_attn.o_proj": (hidden, config.query_width),
        "post_attention_layernorm": (hidden,),
        "mlp.gate_proj": (config.intermediate_size, hidden),
        "mlp.up_proj": (config.intermediate_size, hidden),
        "mlp.down_proj": (hidden, config.intermediate_size),
    }
    for layer in range(config.num_hidden_layers):
        shapes |= {f"encoder.layers.{layer}.{name}.weight": shape for name, shape in in_layer.items()}
    return shapes | {"encoder.norm.weight": (hidden,), "diffusion_head.weight": (config.vocab_size, hidden)}


def adapter_tensor_name(layer: int, matrix: str) -> str:
    """Stored name of `matrix` "A" ([r, H*D]) or "B" ([hidden, r]) of one layer."""
    return f"{_ADAPTER_PREFIX}encoder.layers.{layer}.self_attn.{ADAPTER_TARGET}.lora_{matrix}.weight"


def adapter_decoder_name(layer: int, matrix: str) -> str:
    """Name of the same matrix in the state of a `TriModeDecoder` with an attached adapter."""
    return f"encoder.layers.{layer}.self_attn.adapter.lora_{matrix}.weight"


def adapter_shapes(
    config: ModelConfig, rank: int, name_of: Callable[[int, str], str] = adapter_tensor_name
) -> dict[str, tuple[int, ...]]:
    """Shape of every adapter tensor: by stored name, or by the one that `name_of` gives a layer and "A" or "B"."""
    matrices = {"A": (rank, config.query_width), "B": (config.hidden_size, rank)}
    return {name_of(layer, matrix): shape for layer in range(config.num_hidden_layers) for matrix, shape in matrices.items()}

"""Facts of a model, read once from `config.json`. Nothing here is a choice of the user (see `options`)."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemodiff_trt.errors import CheckpointError

MODEL_TYPE = "nemotron_labs_diffusion"
CONFIG_FILE = "config.json"
# Fields whose other values would change the computation: present means checked, never ignored.
_FIXED_FIELDS: dict[str, tuple[object, ...]] = {
    "hidden_act": ("silu",),
    "attention_bias": (False, None),
    "mlp_bias": (False, None),
    "tie_word_embeddings": (False,),
    "sliding_window": (None,),
    "dlm_paradigm": ("bidirectional",),
}


@dataclass(frozen=True, slots=True)
class RopeParameters:
    """The `rope_parameters` dictionary of the checkpoint: YaRN plus the Llama-4 query scale.

    `original_max_position_embeddings` and positions are in tokens; all else is dimensionless.
    """

    rope_type: str
    rope_theta: float
    factor: float
    original_max_position_embeddings: int
    beta_fast: float
    beta_slow: float
    mscale: float
    mscale_all_dim: float
    llama_4_scaling_beta: float

    def __post_init__(self) -> None:
        if self.rope_type not in ("yarn", "default"):
            raise CheckpointError("rope_parameters.rope_type", self.rope_type, "yarn or default")
        if self.rope_theta <= 1:
            raise CheckpointError("rope_parameters.rope_theta", self.rope_theta, "a number above 1")
        if self.factor < 1:
            raise CheckpointError("rope_parameters.factor", self.factor, "a number of at least 1")
        if self.original_max_position_embeddings <= 0:
            field = "rope_parameters.original_max_position_embeddings"
            raise CheckpointError(field, self.original_max_position_embeddings, "a positive number of tokens")

    @property
    def attention_factor(self) -> float:
        """Factor on cos and sin: get_mscale(factor, mscale) / get_mscale(factor, mscale_all_dim), 1.0 when both are equal."""
        if self.rope_type == "default":
            return 1.0

        def get_mscale(weight: float) -> float:
            return 0.1 * weight * math.log(self.factor) + 1.0 if self.factor > 1 else 1.0

        return get_mscale(self.mscale) / get_mscale(self.mscale_all_dim)


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Geometry and special tokens of one checkpoint. `head_dim` is independent of `hidden_size / num_attention_heads`."""

    num_hidden_layers: int
    hidden_size: int
    intermediate_size: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    rms_norm_eps: float
    max_position_embeddings: int
    block_size: int
    mask_token_id: int
    bos_token_id: int
    eos_token_id: int
    rope_parameters: RopeParameters

    def __post_init__(self) -> None:
        for name in (
            "num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads",
            "head_dim", "vocab_size", "max_position_embeddings", "block_size",
        ):  # fmt: skip
            if getattr(self, name) <= 0:
                raise CheckpointError(name, getattr(self, name), "a positive integer")
        if self.num_attention_heads % self.num_key_value_heads:
            allowed = f"a multiple of num_key_value_heads = {self.num_key_value_heads}"
            raise CheckpointError("num_attention_heads", self.num_attention_heads, allowed)
        if self.head_dim % 2:
            raise CheckpointError("head_dim", self.head_dim, "an even integer")
        for name in ("mask_token_id", "bos_token_id", "eos_token_id"):
            if not 0 <= getattr(self, name) < self.vocab_size:
                raise CheckpointError(name, getattr(self, name), f"0 to {self.vocab_size - 1}")

    @property
    def query_width(self) -> int:
        return self.num_attention_heads * self.head_dim

    @property
    def key_value_width(self) -> int:
        return self.num_key_value_heads * self.head_dim

    @classmethod
    def from_file(cls, checkpoint_dir: Path) -> ModelConfig:
        """Read `checkpoint_dir/config.json`.

        Raises:
            CheckpointError: the file is missing or a field is missing, of another type, or outside its range.
        """
        path = Path(checkpoint_dir) / CONFIG_FILE
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise CheckpointError(CONFIG_FILE, str(path), "a readable file in the checkpoint folder") from error
        except json.JSONDecodeError as error:
            raise CheckpointError(CONFIG_FILE, str(path), f"valid JSON ({error})") from error
        return cls.from_dict(raw)

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> ModelConfig:
        """Build from the parsed content of `config.json`; keys that do not touch the computation are ignored."""
        if raw.get("model_type") != MODEL_TYPE:
            raise CheckpointError("model_type", raw.get("model_type"), MODEL_TYPE)
        for name, allowed in _FIXED_FIELDS.items():
            if name in raw and raw[name] not in allowed:
                raise CheckpointError(name, raw[name], " or ".join(map(repr, allowed)))
        rope_raw = raw.get("rope_parameters")
        if not isinstance(rope_raw, dict):
            raise CheckpointError("rope_parameters", rope_raw, "a dictionary that holds rope_theta and the YaRN fields")
        known = {field.name for field in dataclasses.fields(RopeParameters)}
        for name in rope_raw.keys() - known:
            raise CheckpointError(f"rope_parameters.{name}", rope_raw[name], f"only the fields {', '.join(sorted(known))}")
        rope = RopeParameters(**_typed_fields(RopeParameters, rope_raw, "rope_parameters."))
        own = {k: v for k, v in raw.items() if k != "rope_parameters"}
        return cls(rope_parameters=rope, **_typed_fields(cls, own, "", skip="rope_parameters"))

    def to_dict(self) -> dict[str, Any]:
        """Content for `config.json`; `from_dict(to_dict())` gives the same configuration."""
        fixed = {"hidden_act": "silu", "attention_bias": False, "tie_word_embeddings": False, "dlm_paradigm": "bidirectional"}
        return {"model_type": MODEL_TYPE, **fixed, **dataclasses.asdict(self)}


def _typed_fields(cls: type, raw: dict[str, Any], prefix: str, skip: str = "") -> dict[str, Any]:
    """Pick the fields of dataclass `cls` out of `raw`, converting whole numbers to float where a float is declared."""
    picked: dict[str, Any] = {}
    for field in dataclasses.fields(cls):
        if field.name == skip:
            continue
        if field.name not in raw:
            raise CheckpointError(prefix + field.name, None, f"a value of type {field.type}")
        value = raw[field.name]
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        is_valid = {"int": is_number and value == int(value) if is_number else False, "float": is_number, "str": isinstance(value, str)}
        if not is_valid[str(field.type)]:
            raise CheckpointError(prefix + field.name, value, f"a value of type {field.type}")
        picked[field.name] = {"int": int, "float": float, "str": str}[str(field.type)](value)
    return picked

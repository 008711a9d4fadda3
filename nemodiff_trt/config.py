"""Facts of a model, read once from `config.json`. Nothing here is a choice of the user (see `options`)."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from nemodiff_trt.errors import CheckpointError

MODEL_TYPE = "nemotron_labs_diffusion"
CONFIG_FILE = "config.json"
# Largest count any field may hold; tensor sizes are products of a few of them and stay within 64 bits.
_MAX_COUNT = 2**31 - 1
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
        _check_number("rope_parameters.rope_theta", self.rope_theta, above=1)
        _check_number("rope_parameters.factor", self.factor, at_least=1)
        _check_integer(
            "rope_parameters.original_max_position_embeddings", self.original_max_position_embeddings, "a positive integer"
        )
        for name in ("beta_fast", "beta_slow", "mscale"):
            _check_number(f"rope_parameters.{name}", getattr(self, name), above=0)
        for name in ("mscale_all_dim", "llama_4_scaling_beta"):
            _check_number(f"rope_parameters.{name}", getattr(self, name), at_least=0)

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
            _check_integer(name, getattr(self, name), "a positive integer")
        _check_number("rms_norm_eps", self.rms_norm_eps, above=0)
        if self.num_attention_heads % self.num_key_value_heads:
            allowed = f"a multiple of num_key_value_heads = {self.num_key_value_heads}"
            raise CheckpointError("num_attention_heads", self.num_attention_heads, allowed)
        if self.head_dim % 2:
            raise CheckpointError("head_dim", self.head_dim, "an even integer")
        for name in ("mask_token_id", "bos_token_id", "eos_token_id"):
            token_id = getattr(self, name)
            _check_integer(name, token_id, f"0 to {self.vocab_size - 1}", lowest=0, highest=self.vocab_size - 1)
        if self.mask_token_id in (self.bos_token_id, self.eos_token_id):
            raise CheckpointError("mask_token_id", self.mask_token_id, "an id other than bos_token_id and eos_token_id")

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
        return cls.from_dict(read_json_object(Path(checkpoint_dir) / CONFIG_FILE, CONFIG_FILE))

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> ModelConfig:
        """Build from the parsed content of `config.json`; keys that do not touch the computation are ignored.

        Raises:
            CheckpointError: a field is missing, of another type, or outside its range.
        """
        if raw.get("model_type") != MODEL_TYPE:
            raise CheckpointError("model_type", raw.get("model_type"), MODEL_TYPE)
        for name, allowed in _FIXED_FIELDS.items():
            if name in raw and not any(raw[name] is value or raw[name] == value for value in allowed):
                raise CheckpointError(name, raw[name], " or ".join(map(repr, allowed)))
        rope_raw = raw.get("rope_parameters")
        if not isinstance(rope_raw, dict):
            raise CheckpointError("rope_parameters", rope_raw, "a dictionary that holds rope_theta and the YaRN fields")
        # Older configuration files name the type twice.
        if "type" in rope_raw and rope_raw["type"] != rope_raw.get("rope_type"):
            raise CheckpointError("rope_parameters.type", rope_raw["type"], f"the rope_type, {rope_raw.get('rope_type')!r}")
        known = {field.name for field in dataclasses.fields(RopeParameters)}
        for name in sorted(rope_raw.keys() - known - {"type"}):
            raise CheckpointError(f"rope_parameters.{name}", rope_raw[name], f"only the fields {', '.join(sorted(known))}")
        rope = RopeParameters(**_typed_fields(RopeParameters, rope_raw, "rope_parameters."))
        return cls(rope_parameters=rope, **_typed_fields(cls, raw, "", skip="rope_parameters"))

    def to_dict(self) -> dict[str, Any]:
        """Content for `config.json`; `from_dict(to_dict())` gives the same configuration."""
        fixed = {"hidden_act": "silu", "attention_bias": False, "tie_word_embeddings": False, "dlm_paradigm": "bidirectional"}
        return {"model_type": MODEL_TYPE, **fixed, **dataclasses.asdict(self)}


def read_json_object(path: Path, field: str) -> dict[str, Any]:
    """Content of a JSON file that holds one object.

    Raises:
        CheckpointError: named `field`; the file is missing, unreadable, no valid JSON, or holds something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(field, str(path), f"a readable file ({error.strerror})") from error
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise CheckpointError(field, str(path), f"valid JSON ({error})") from error
    if not isinstance(content, dict):
        raise CheckpointError(field, type(content).__name__, "a JSON object")
    return content


def _check_number(field: str, value: object, above: float | None = None, at_least: float = 0.0) -> None:
    """Refuse everything that is not a finite number in its range."""
    is_in_range = _is_number(value) and (value > above if above is not None else value >= at_least)
    if not is_in_range:
        bound = f"above {above:g}" if above is not None else f"of at least {at_least:g}"
        raise CheckpointError(field, value, f"a finite number {bound}")


def _check_integer(field: str, value: object, allowed: str, lowest: int = 1, highest: int = _MAX_COUNT) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not lowest <= value <= highest:
        raise CheckpointError(field, value, allowed)


def _typed_fields(cls: type, raw: dict[str, Any], prefix: str, skip: str = "") -> dict[str, Any]:
    """Pick the fields of dataclass `cls` out of `raw`, with whole floats as int and integers as float where declared so."""
    picked: dict[str, Any] = {}
    for field in dataclasses.fields(cls):
        if field.name == skip:
            continue
        if field.name not in raw:
            raise CheckpointError(prefix + field.name, None, f"a value of type {field.type}")
        picked[field.name] = _typed_value(prefix + field.name, raw[field.name], str(field.type))
    return picked


def _typed_value(field: str, value: object, wanted: str) -> object:
    if wanted == "str" and isinstance(value, str):
        return value
    if wanted == "float" and _is_number(value):
        return float(value)
    if wanted == "int" and _is_number(value) and value == int(value):
        return int(value)
    raise CheckpointError(field, value, f"a value of type {wanted}")


def _is_number(value: object) -> TypeGuard[float]:
    """A finite number within the range of a double: JSON also parses true, NaN, Infinity and integers of any length."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:
        return False

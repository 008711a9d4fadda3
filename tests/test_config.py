"""`config.json` is read once, completely, and refused when it asks for another computation."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from nemodiff_trt.config import ModelConfig, RopeParameters
from nemodiff_trt.errors import CheckpointError, InvalidInputError, NemodiffError
from support.checkpoints import tiny_config

# Published configuration of the 8B model (fields that this project reads or checks, and two that it ignores).
PUBLISHED_8B: dict[str, Any] = {
    "model_type": "nemotron_labs_diffusion",
    "attention_bias": False,
    "block_size": 32,
    "bos_token_id": 1,
    "dlm_paradigm": "bidirectional",
    "eos_token_id": 11,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "initializer_range": 0.02,
    "intermediate_size": 14336,
    "mask_token_id": 100,
    "max_position_embeddings": 262144,
    "mlp_bias": False,
    "num_attention_heads": 32,
    "num_hidden_layers": 34,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05,
    "rope_parameters": {
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "factor": 16.0,
        "llama_4_scaling_beta": 0.1,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
        "original_max_position_embeddings": 16384,
        "rope_theta": 1000000.0,
        "rope_type": "yarn",
    },
    "sliding_window": None,
    "tie_word_embeddings": False,
    "use_cache": False,
    "vocab_size": 131072,
}

REQUIRED = [name for name in ModelConfig.__slots__ if name != "rope_parameters"]
REQUIRED += [f"rope.{name}" for name in RopeParameters.__slots__]


def changed(path: str, value: object) -> dict[str, Any]:
    """The published configuration with one field set; `path` may start with "rope."."""
    content: dict[str, Any] = json.loads(json.dumps(PUBLISHED_8B))
    if path.startswith("rope."):
        content["rope_parameters"][path.removeprefix("rope.")] = value
    else:
        content[path] = value
    return content


def test_published_configuration() -> None:
    config = ModelConfig.from_dict(PUBLISHED_8B)
    assert (config.query_width, config.key_value_width, config.head_dim) == (4096, 1024, 128)
    assert config.rope_parameters.rope_theta == 1e6
    assert config.rope_parameters.attention_factor == 1.0


def test_round_trip_through_a_file(tmp_path: Path) -> None:
    config = tiny_config()
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
    assert ModelConfig.from_file(tmp_path) == config


def test_attention_factor_is_the_ratio_of_both_scales() -> None:
    rope = ModelConfig.from_dict(changed("rope.mscale_all_dim", 0)).rope_parameters
    assert rope.attention_factor == pytest.approx(0.1 * math.log(16) + 1, rel=1e-12)


def test_older_files_may_name_the_rope_type_twice() -> None:
    assert ModelConfig.from_dict(changed("rope.type", "yarn")) == ModelConfig.from_dict(PUBLISHED_8B)
    with pytest.raises(CheckpointError, match=r"rope_parameters\.type"):
        ModelConfig.from_dict(changed("rope.type", "linear"))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("model_type", "llama"),
        ("hidden_act", "gelu"),
        ("attention_bias", True),
        ("mlp_bias", True),
        ("tie_word_embeddings", True),
        ("sliding_window", 4096),
        ("dlm_paradigm", "autoregressive"),
        ("rope_parameters", None),
        ("rope.rope_type", "llama3"),
        ("rope.truncate", False),
        ("rope.rope_theta", 1.0),
        ("rope.rope_theta", math.nan),
        ("rope.rope_theta", math.inf),
        ("rope.rope_theta", "1e6"),
        ("rope.factor", 0.5),
        ("rope.factor", math.nan),
        ("rope.beta_fast", 0.0),
        ("rope.beta_slow", -math.inf),
        ("rope.mscale", 0.0),
        ("rope.mscale_all_dim", -10.0),
        ("rope.llama_4_scaling_beta", -0.1),
        ("rope.original_max_position_embeddings", 0),
        ("num_hidden_layers", 0),
        ("num_hidden_layers", True),
        ("num_hidden_layers", 2.5),
        ("num_hidden_layers", math.inf),
        ("num_hidden_layers", math.nan),
        ("num_hidden_layers", 10**400),
        ("hidden_size", "4096"),
        ("hidden_size", None),
        ("vocab_size", 2**40),
        ("rms_norm_eps", 0),
        ("rms_norm_eps", math.nan),
        ("rms_norm_eps", 10**400),
        ("num_key_value_heads", 5),
        ("head_dim", 127),
        ("mask_token_id", 131072),
        ("mask_token_id", -1),
        ("mask_token_id", 11),
        ("eos_token_id", [11, 12]),
    ],
)
def test_a_field_that_would_change_the_computation_is_refused(path: str, value: object) -> None:
    with pytest.raises(CheckpointError) as caught:
        ModelConfig.from_dict(changed(path, value))
    error = caught.value
    assert path.removeprefix("rope.") in error.field or path == "num_key_value_heads"
    assert error.allowed
    assert "\n" not in str(error)


@pytest.mark.parametrize("path", REQUIRED)
def test_a_missing_field_is_named(path: str) -> None:
    content = changed(path, 0)
    holder = content["rope_parameters"] if path.startswith("rope.") else content
    del holder[path.removeprefix("rope.")]
    with pytest.raises(CheckpointError, match=path.removeprefix("rope.")):
        ModelConfig.from_dict(content)


def test_whole_floats_count_as_integers_and_back() -> None:
    config = ModelConfig.from_dict(changed("hidden_size", 4096.0))
    assert config.hidden_size == 4096
    assert isinstance(config.hidden_size, int)
    assert isinstance(ModelConfig.from_dict(changed("rope.factor", 16)).rope_parameters.factor, float)


@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff\xfe", b"null", b"[" * 100_000])
def test_a_file_that_is_no_json_object_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        ModelConfig.from_file(tmp_path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json"):
        ModelConfig.from_file(tmp_path)


def test_errors_carry_field_value_and_what_is_allowed() -> None:
    error = InvalidInputError("block_length", 0, "1 to 32")
    assert isinstance(error, (NemodiffError, ValueError))
    assert (error.field, error.value, error.allowed) == ("block_length", 0, "1 to 32")
    assert str(error) == "block_length: got 0, allowed: 1 to 32"

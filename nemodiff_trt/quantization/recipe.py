"""Which linear layer gets which number format: one default for the decoder's layers, overrides by name pattern.

A recipe file is YAML:

    format: nvfp4            # of every decoder linear; --precision if left out
    activations: max         # or percentile: how ranges of activations are taken from what calibration saw
    weights: max             # or mse: how the block scales of nvfp4 weights are chosen
    overrides:               # the last pattern that matches a layer decides
      "encoder.layers.0.*": none
      "*.down_proj": fp8
      diffusion_head: fp8    # embedding, norms, head and adapter keep their precision unless named like this

Layers are named as in the checkpoint, without `.weight`; `*` stands for any text.
"""

from __future__ import annotations

import dataclasses
import fnmatch
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from nemodiff_trt.config import ModelConfig
from nemodiff_trt.errors import InvalidInputError
from nemodiff_trt.vocabulary import NVFP4_BLOCK, LinearFormat

HEAD = "diffusion_head"
_IN_LAYER = (
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
)
_ADAPTER = ("self_attn.adapter.lora_A", "self_attn.adapter.lora_B")
# Layers over one input that engines multiply as one matrix.
_JOINED = (_IN_LAYER[:3], _IN_LAYER[4:6])
_NONE = "none"


class ActivationRange(StrEnum):
    """The range of an activation: the largest magnitude seen, or one that leaves out the largest 0.01 %."""

    MAX = "max"
    PERCENTILE = "percentile"


class WeightScales(StrEnum):
    """Block scales of NVFP4 weights: of the largest magnitude, or of the least squared error."""

    MAX = "max"
    MSE = "mse"


@dataclass(frozen=True, slots=True)
class Override:
    """Layers whose name matches `pattern` get `format`; None keeps their precision."""

    pattern: str
    format: LinearFormat | None


@dataclass(frozen=True, slots=True)
class Recipe:
    """Formats of all linear layers of one role. None as `format` quantises nothing but what overrides name."""

    format: LinearFormat | None
    overrides: tuple[Override, ...] = ()
    activations: ActivationRange = ActivationRange.MAX
    weights: WeightScales = WeightScales.MAX

    def format_of(self, linear: str) -> LinearFormat | None:
        """Format of the layer named `linear`, without `.weight`."""
        chosen = self.format if linear.endswith(_IN_LAYER) else None
        if linear != HEAD and not linear.endswith((*_IN_LAYER, *_ADAPTER)):
            return None
        for override in self.overrides:
            if fnmatch.fnmatchcase(linear, override.pattern):
                chosen = override.format
        return chosen

    def with_format(self, format: LinearFormat | None) -> Recipe:  # noqa: A002 - the field's name
        """The same with another default."""
        return dataclasses.replace(self, format=format)

    def check(self, model: ModelConfig) -> None:
        """Hold the recipe against the layers of a model.

        Raises:
            InvalidInputError: a pattern matches nothing, layers that are one matrix in an engine get different formats, or a
                matrix has no whole blocks.
        """
        names = linear_names(model)
        for override in self.overrides:
            if not any(fnmatch.fnmatchcase(name, override.pattern) for name in names):
                raise InvalidInputError(
                    "recipe overrides", override.pattern, f"a pattern that matches a layer, such as {names[0]}"
                )
        for layer in range(model.num_hidden_layers):
            for group in _JOINED:
                found = {name: self.format_of(f"encoder.layers.{layer}.{name}") for name in group}
                if len(set(found.values())) > 1:
                    shown = ", ".join(f"{name} {form or _NONE}" for name, form in found.items())
                    raise InvalidInputError(
                        "recipe overrides", f"layer {layer}: {shown}", "one format for layers over one input"
                    )
        widths = {
            "hidden_size": model.hidden_size,
            "query_width": model.query_width,
            "intermediate_size": model.intermediate_size,
        }
        if any(self.format_of(name) is LinearFormat.NVFP4 for name in names):
            for name, width in widths.items():
                if width % NVFP4_BLOCK:
                    raise InvalidInputError(name, width, f"a multiple of {NVFP4_BLOCK} for nvfp4")

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "format": self.format,
            "overrides": {override.pattern: override.format or _NONE for override in self.overrides},
            "activations": self.activations,
            "weights": self.weights,
        }

    @classmethod
    def from_dict(cls, raw: Any, default: LinearFormat | None = None) -> Recipe:
        """Inverse of `to_dict`; `default` stands in for a format that is left out.

        Raises:
            InvalidInputError: a key or a value is unknown.
        """
        if not isinstance(raw, dict):
            raise InvalidInputError("recipe", type(raw).__name__, "a mapping with format, overrides, activations, weights")
        known = {field.name for field in dataclasses.fields(cls)}
        for key in raw:
            if key not in known:
                raise InvalidInputError("recipe", key, ", ".join(sorted(known)))
        overrides = raw.get("overrides") or {}
        if not isinstance(overrides, dict):
            raise InvalidInputError("recipe overrides", overrides, "a mapping of name pattern to format")
        return cls(
            _format("recipe format", raw["format"]) if raw.get("format") is not None else default,
            tuple(Override(str(pattern), _format(f"recipe {pattern}", value)) for pattern, value in overrides.items()),
            ActivationRange(_one_of("recipe activations", raw.get("activations", "max"), ActivationRange)),
            WeightScales(_one_of("recipe weights", raw.get("weights", "max"), WeightScales)),
        )

    @classmethod
    def from_file(cls, path: Path, default: LinearFormat | None = None) -> Recipe:
        """Read a YAML file.

        Raises:
            InvalidInputError: the file cannot be read, is no YAML, or see `from_dict`.
        """
        import yaml

        try:
            raw = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise InvalidInputError("recipe", str(path), f"a readable YAML file ({str(error).splitlines()[0]})") from error
        return cls.from_dict({} if raw is None else raw, default)


def linear_names(model: ModelConfig) -> tuple[str, ...]:
    """Every linear layer of a decoder with an adapter, without `.weight`."""
    layers = range(model.num_hidden_layers)
    in_layers = (f"encoder.layers.{layer}.{name}" for layer in layers for name in (*_IN_LAYER, *_ADAPTER))
    return (*in_layers, HEAD)


def joined_linears(linear: str) -> tuple[str, ...]:
    """Layers that engines multiply as one matrix, `linear` among them, in the order they are joined."""
    for group in _JOINED:
        for name in group:
            if linear.endswith(f".{name}"):
                return tuple(f"{linear.removesuffix(name)}{each}" for each in group)
    return (linear,)


def layer_of(tensor: str) -> str:
    """Name of the linear layer whose matrix is `tensor`."""
    return tensor.removesuffix(".weight")


def _one_of(field: str, value: Any, choices: type[StrEnum]) -> str:
    if value not in [str(choice) for choice in choices]:
        raise InvalidInputError(field, value, ", ".join(choices))
    return str(value)


def _format(field: str, value: Any) -> LinearFormat | None:
    # YAML reads `none` as text and `null` as nothing: both mean the same here.
    if value is None or value == _NONE:
        return None
    return LinearFormat(_one_of(field, value, LinearFormat))

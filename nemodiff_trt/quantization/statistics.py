"""What calibration found out about activations: the range of every linear layer's input, in every role."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from nemodiff_trt.errors import InvalidInputError
from nemodiff_trt.quantization.recipe import ActivationRange
from nemodiff_trt.vocabulary import Role

_KIND = "nemodiff activation ranges"
_FIELDS = ("kind", "checkpoint", "activations", "num_sequences", "num_tokens", "amax")


@dataclass(frozen=True, slots=True)
class ActivationStatistics:
    """Ranges of inputs.

    Args:
        checkpoint: identity (SHA-256) of the checkpoint that was calibrated.
        activations: how a range was taken from what was seen.
        num_sequences, num_tokens: of the calibration text; every role saw a part of it.
        amax: layer (without `.weight`) -> role -> largest magnitude to represent.
    """

    checkpoint: str
    activations: ActivationRange
    num_sequences: int
    num_tokens: int
    amax: Mapping[str, Mapping[Role, float]] = field(default_factory=dict)

    def input_amax(self, linear: str) -> float:
        """The range of a layer's input over all roles: one engine weight, one input scale.

        Raises:
            InvalidInputError: the layer was not calibrated.
        """
        if linear not in self.amax:
            raise InvalidInputError("calibration", linear, f"one of the {len(self.amax)} layers that were calibrated")
        return max(self.amax[linear].values())

    def describe(self) -> str:
        """For people: how ranges were taken, and from how much text."""
        return f"{self.activations} over {self.num_sequences} sequences, {self.num_tokens} tokens"

    def to_bytes(self) -> bytes:
        """JSON text."""
        content = {
            "kind": _KIND,
            "checkpoint": self.checkpoint,
            "activations": self.activations,
            "num_sequences": self.num_sequences,
            "num_tokens": self.num_tokens,
            "amax": self.amax,
        }
        return (json.dumps(content, indent=1) + "\n").encode("ascii")

    @classmethod
    def from_file(cls, path: Path) -> ActivationStatistics:
        """Read what `to_bytes` wrote.

        Raises:
            InvalidInputError: the file is no such thing, or a range is not a positive number.
        """
        try:
            raw = json.loads(path.read_bytes())
        except (OSError, ValueError) as error:
            raise InvalidInputError("calibration", str(path), f"a readable JSON file ({error})") from error
        if not isinstance(raw, dict) or raw.get("kind") != _KIND or set(raw) != set(_FIELDS):
            raise InvalidInputError("calibration", str(path), f"a file with kind {_KIND!r} and the fields {', '.join(_FIELDS)}")
        try:
            amax = {
                linear: {Role(role): _range(linear, value) for role, value in roles.items()}
                for linear, roles in raw["amax"].items()
            }
            activations = ActivationRange(raw["activations"])
            counts = int(raw["num_sequences"]), int(raw["num_tokens"])
        except (TypeError, AttributeError, ValueError) as error:
            raise InvalidInputError("calibration", str(path), f"ranges by layer and role ({error})") from error
        return cls(str(raw["checkpoint"]), activations, *counts, amax)


def _range(linear: str, value: object) -> float:
    if not isinstance(value, (int, float)) or not math.isfinite(value) or value <= 0:
        raise ValueError(f"{linear}: {value!r} is not a positive number")
    return float(value)

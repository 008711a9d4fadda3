"""What `config.pbtxt` tells the model besides its tensors: parameters that users may edit."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nemodiff_trt.errors import InvalidInputError
from nemodiff_trt.runtime.engine import EngineOptions
from nemodiff_trt.runtime.triton_repository.variant import Variant

# Long enough that nothing but a flood is refused, short enough that the last one waits for minutes rather than hours.
DEFAULT_MAX_WAITING = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingSettings:
    """How a bundle is served.

    Attributes:
        bundle: folder of the bundle; a relative path starts at the version folder of the model.
        variant: what requests look like.
        engine: limits of the engine loop.
        num_threads: CPU threads of a step, None for what the backend takes by itself.
        verify: compare the checksum of every file of the bundle at each load.
        warm_up: run every mode once, alone and with all slots taken, before the model counts as ready.
        cancel_poll_s: seconds between two looks at whether clients have left.
        metrics_s: seconds between two updates of the metrics; 0 for none.
        end_think_token_id: variant `tokens` only: `</think>` of the tokenizer that is not loaded.

    Raises:
        InvalidInputError: a field is out of range.
    """

    bundle: str = "bundle"
    variant: Variant = Variant.TEXT
    engine: EngineOptions = EngineOptions(max_waiting=DEFAULT_MAX_WAITING)
    num_threads: int | None = None
    verify: bool = True
    warm_up: bool = True
    cancel_poll_s: float = 0.1
    metrics_s: float = 1.0
    end_think_token_id: int | None = None

    def __post_init__(self) -> None:
        if not 0 < self.cancel_poll_s < float("inf"):
            raise InvalidInputError("cancel_poll_s", self.cancel_poll_s, "a positive number of seconds")
        if not 0 <= self.metrics_s < float("inf"):
            raise InvalidInputError("metrics_s", self.metrics_s, "a number of seconds, 0 for no metrics")

    def to_parameters(self) -> dict[str, str]:
        """As the texts of `config.pbtxt`, JSON but for strings. Fields of `engine` stand beside the others."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        values |= dataclasses.asdict(values.pop("engine"))
        return {name: value if isinstance(value, str) else json.dumps(value) for name, value in values.items()}

    @classmethod
    def from_parameters(cls, parameters: Mapping[str, str]) -> ServingSettings:
        """The reverse of `to_parameters`; what is missing has its default.

        Raises:
            InvalidInputError: a parameter is unknown or has an unusable value.
        """
        own = {field.name for field in dataclasses.fields(cls)} - {"engine"}
        of_engine = {field.name for field in dataclasses.fields(EngineOptions)}
        for name in parameters.keys() - own - of_engine:
            raise InvalidInputError(f"parameters.{name}", parameters[name], ", ".join(sorted(own | of_engine)))
        values: dict[str, Any] = {name: _parse(name, text) for name, text in parameters.items() if name != "bundle"}
        if "variant" in parameters:
            values["variant"] = _variant(parameters["variant"])
        if "bundle" in parameters:
            values["bundle"] = parameters["bundle"]
        engine = dataclasses.replace(cls().engine, **{name: value for name, value in values.items() if name in of_engine})
        return cls(**{name: value for name, value in values.items() if name in own}, engine=engine)


def _variant(value: str) -> Variant:
    if value not in list(Variant):
        raise InvalidInputError("parameters.variant", value, " or ".join(Variant))
    return Variant(value)


def _parse(name: str, text: str) -> Any:
    """A number, true, false or null; the dataclasses check ranges, this the type."""
    if name == "variant":
        return text
    defaults = ServingSettings()
    default = getattr(defaults, name) if hasattr(defaults, name) else getattr(defaults.engine, name)
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise InvalidInputError(f"parameters.{name}", text, "a number, true, false or null") from error
    wants_bool, wants_float = isinstance(default, bool), isinstance(default, float)
    is_right = isinstance(value, bool) == wants_bool and isinstance(value, (int, float) if wants_float else int)
    if not is_right and not (value is None and name in _MAY_BE_NULL):
        kind = "true or false" if wants_bool else "a number" if wants_float else "an integer"
        raise InvalidInputError(f"parameters.{name}", text, kind + (" or null" if name in _MAY_BE_NULL else ""))
    return value


_MAY_BE_NULL = frozenset({"num_threads", "end_think_token_id", "max_active", "max_waiting"})

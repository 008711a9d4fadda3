"""From the tensors of one request to what the engine takes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from nemodiff_trt.errors import InvalidInputError
from nemodiff_trt.runtime.options import GenerationOptions
from nemodiff_trt.runtime.prompts import Prompt
from nemodiff_trt.runtime.sampling.options import bias_by_id
from nemodiff_trt.runtime.triton_repository.fields import (
    INPUT_IDS,
    MESSAGES,
    PRIORITY,
    STREAM,
    TIMEOUT_S,
    Field,
    Kind,
    inputs,
    option_fields,
    prompt_fields,
)
from nemodiff_trt.runtime.triton_repository.variant import Variant

# Parameters of a request that belong to the server, by name or by how they begin.
_SERVER_PARAMETERS = frozenset({"binary_data_output", "id", "priority", "timeout"})
_SERVER_PREFIXES = ("triton_", "sequence_")
_MAX_SHOWN = 200
_MAX_TIMEOUT_S = 1e9


@dataclass(frozen=True, slots=True)
class ParsedRequest:
    """A request, checked as far as that is possible without the engine.

    Attributes:
        prompt: text, chat or token ids.
        prompt_name: input it came in, for messages.
        options: how to answer.
        priority: higher is admitted earlier.
        timeout_s: seconds after which the answer ends with what it has, None for no limit.
        is_streamed: many responses rather than one.
    """

    prompt: Prompt
    prompt_name: str
    options: GenerationOptions
    priority: int
    timeout_s: float | None
    is_streamed: bool


class RequestParser:
    """Reads the requests of one variant."""

    def __init__(self, variant: Variant) -> None:
        self._fields = {field.name: field for field in inputs(variant)}
        self._prompts = tuple(field.name for field in prompt_fields(variant))
        self._options = frozenset(field.name for field in option_fields(variant))

    def parse(self, tensors: Mapping[str, np.ndarray], parameters: Mapping[str, Any]) -> ParsedRequest:
        """Read one request.

        Args:
            tensors: inputs by name, strings as bytes.
            parameters: of the request. What is not an input of the model arrives here, a misspelt option for one.

        Raises:
            InvalidInputError: names the input and what is allowed.
        """
        for name, value in parameters.items():
            if name not in _SERVER_PARAMETERS and not name.startswith(_SERVER_PREFIXES):
                raise InvalidInputError(name, _short(value), f"only the inputs {', '.join(self._fields)}")
        values = {name: _value_of(self._fields[name], tensor) for name, tensor in tensors.items() if name in self._fields}
        given = [name for name in self._prompts if name in values]
        if len(given) != 1:
            shown = " and ".join(given) or "no prompt"
            raise InvalidInputError(self._prompts[0], shown, f"exactly one of {', '.join(self._prompts)}")
        options = GenerationOptions().changed(**{name: values[name] for name in values.keys() & self._options})
        timeout_s = values.get(TIMEOUT_S)
        if timeout_s is not None and not 0 < timeout_s <= _MAX_TIMEOUT_S:
            raise InvalidInputError(TIMEOUT_S, timeout_s, f"a number of seconds above 0, at most {_MAX_TIMEOUT_S:g}")
        return ParsedRequest(
            prompt=_checked_prompt(given[0], values[given[0]]),
            prompt_name=given[0],
            options=options,
            priority=values.get(PRIORITY, 0),
            timeout_s=timeout_s,
            is_streamed=values.get(STREAM, True),
        )


def _checked_prompt(name: str, value: Any) -> Prompt:
    if name == MESSAGES and (not isinstance(value, list) or not all(isinstance(message, dict) for message in value)):
        raise InvalidInputError(name, _short(value), "a JSON list of objects with role and content")
    if name in (MESSAGES, INPUT_IDS) and not value:
        raise InvalidInputError(name, value, "at least one entry")
    prompt: Prompt = value
    return prompt


def _value_of(field: Field, tensor: np.ndarray) -> Any:
    """Plain value of a tensor, whose dtype and rank the server has compared with the configuration."""
    items = [_item(field, item) for item in tensor.reshape(-1).tolist()]
    if field.is_list:
        return tuple(items) if field.kind is Kind.STRING else items
    if len(items) != 1:
        raise InvalidInputError(field.name, f"{len(items)} values", "one value")
    return items[0]


def _item(field: Field, item: Any) -> Any:
    if field.kind not in (Kind.STRING, Kind.JSON):
        return item
    try:
        text = item.decode() if isinstance(item, bytes) else str(item)
    except UnicodeDecodeError as error:
        raise InvalidInputError(field.name, _short(item), "UTF-8 text") from error
    if field.kind is Kind.STRING:
        return text
    try:
        value = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise InvalidInputError(field.name, _short(text), f"a JSON document ({error})") from error
    # JSON has no other keys than texts; token ids are meant.
    return bias_by_id(value, field.name) if isinstance(value, dict) else value


def _short(value: object) -> str:
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}..."

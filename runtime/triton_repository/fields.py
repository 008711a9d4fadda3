"""The tensors of a served model, declared once: `config.pbtxt` and the reading of requests are made from these lists.

Options are the fields of `GenerationOptions` and of the dataclasses inside it, so a new one is an input without further ado.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum, StrEnum
from typing import Any

from nemodiff_trt.runtime.options import GenerationOptions
from nemodiff_trt.runtime.triton_repository.variant import Variant

TEXT_INPUT = "text_input"
MESSAGES = "messages"
INPUT_IDS = "input_ids"
PRIORITY = "priority"
TIMEOUT_S = "timeout_s"
STREAM = "stream"
TEXT_OUTPUT = "text_output"
TOKEN_IDS = "token_ids"
FINISH_REASON = "finish_reason"
STATS = "stats"
LOGPROBS_OUTPUT = "token_logprobs"

# Options that mean something for text only: stop strings, and the think section of a chat template.
TEXT_OPTIONS = frozenset({"stop", "enable_thinking"})


class Kind(StrEnum):
    """How a value travels; `json` is a text that holds a JSON document."""

    STRING = "string"
    INTEGER = "integer"
    NUMBER = "number"
    BOOLEAN = "boolean"
    JSON = "json"

    @property
    def triton_type(self) -> str:
        """Name of the type in `config.pbtxt`."""
        return _TRITON_TYPES[self]


_TRITON_TYPES = {
    Kind.STRING: "TYPE_STRING",
    Kind.INTEGER: "TYPE_INT64",
    Kind.NUMBER: "TYPE_FP64",
    Kind.BOOLEAN: "TYPE_BOOL",
    Kind.JSON: "TYPE_STRING",
}
_KINDS: tuple[tuple[type, Kind], ...] = (
    # An enumeration of strings is a string, a boolean is an integer: the order matters.
    (Enum, Kind.STRING),
    (str, Kind.STRING),
    (bool, Kind.BOOLEAN),
    (int, Kind.INTEGER),
    (float, Kind.NUMBER),
)


@dataclass(frozen=True, slots=True)
class Field:
    """One tensor: shape [1], or [-1] for a list."""

    name: str
    kind: Kind
    is_list: bool = False

    @property
    def dims(self) -> int:
        return -1 if self.is_list else 1


def inputs(variant: Variant) -> tuple[Field, ...]:
    """Everything a request may hold, all of it optional; exactly one of the prompts must be there."""
    return (*prompt_fields(variant), *option_fields(variant), *CONTROL_FIELDS)


def prompt_fields(variant: Variant) -> tuple[Field, ...]:
    """The forms a prompt may have."""
    ids = Field(INPUT_IDS, Kind.INTEGER, is_list=True)
    if variant is Variant.TOKENS:
        return (ids,)
    return (Field(TEXT_INPUT, Kind.STRING), Field(MESSAGES, Kind.JSON), ids)


# How a request is treated, rather than answered: its place in the queue, its time, one response or many.
CONTROL_FIELDS = (Field(PRIORITY, Kind.INTEGER), Field(TIMEOUT_S, Kind.NUMBER), Field(STREAM, Kind.BOOLEAN))


def option_fields(variant: Variant) -> tuple[Field, ...]:
    """The options of a request."""
    left_out = TEXT_OPTIONS if variant is Variant.TOKENS else frozenset()
    return tuple(field for field in _fields_of(GenerationOptions) if field.name not in left_out)


def outputs(variant: Variant) -> tuple[Field, ...]:
    """What a response holds; `token_logprobs` only where they were asked for."""
    text = () if variant is Variant.TOKENS else (Field(TEXT_OUTPUT, Kind.STRING),)
    return (
        *text,
        Field(TOKEN_IDS, Kind.INTEGER, is_list=True),
        Field(FINISH_REASON, Kind.STRING),
        Field(STATS, Kind.JSON),
        Field(LOGPROBS_OUTPUT, Kind.JSON),
    )


def _fields_of(options: type[Any]) -> Iterator[Field]:
    hints = typing.get_type_hints(options)
    for field in dataclasses.fields(options):
        hint = hints[field.name]
        if dataclasses.is_dataclass(hint) and isinstance(hint, type):
            yield from _fields_of(hint)
        else:
            yield _field_of(field.name, hint)


def _field_of(name: str, hint: Any) -> Field:
    """`X | None` is an X that may be missing, `tuple[X, ...]` a list; what is neither a list nor simple travels as JSON."""
    is_union = isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union
    choices = [choice for choice in typing.get_args(hint) if choice is not type(None)] if is_union else [hint]
    if len(choices) == 1:
        item, is_list = choices[0], False
        if typing.get_origin(item) is tuple and typing.get_args(item)[1:] == (...,):
            item, is_list = typing.get_args(item)[0], True
        if isinstance(item, type):
            for base, kind in _KINDS:
                if issubclass(item, base):
                    return Field(name, kind, is_list)
    return Field(name, Kind.JSON)

"""From a row of the input to what the engine takes."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from nemodiff_trt.errors import InvalidInputError
from nemodiff_trt.runtime.batch.input_file import RawRow
from nemodiff_trt.runtime.options import GenerationOptions
from nemodiff_trt.runtime.prompts import Prompt, as_asked, prompt_of, wants_chat
from nemodiff_trt.runtime.sampling.noise import derived_seed
from nemodiff_trt.runtime.sampling.options import bias_by_id
from nemodiff_trt.tokenizer import Tokenizer

_MAX_SHOWN = 40
# What a row may hold beside options.
_PROMPTS = ("prompt", "messages")
ID = "id"


@dataclass(frozen=True, slots=True)
class RowRequest:
    """What one row asks for. `row_id` is its "id", None if it has none."""

    row_id: str | int | None
    prompt: Prompt
    options: GenerationOptions


class RequestReader:
    """Reads rows: {"prompt": text} or {"messages": chat}, with an "id" and any field of `GenerationOptions` if wanted."""

    def __init__(self, tokenizer: Tokenizer, options: GenerationOptions, use_chat: bool | None) -> None:
        """`options` are those of rows that give none; `use_chat` as for `wants_chat`."""
        self._tokenizer = tokenizer
        self._options = options
        self._use_chat = use_chat

    def read(self, row: RawRow) -> RowRequest:
        """Read one row. A seed of the job gives every row one of its own; a seed of the row is taken as it is.

        Raises:
            InvalidInputError: the row is no JSON object, a field is unknown, or a value is not usable.
        """
        content = _parse(row.content)
        prompt = prompt_of({name: value for name, value in content.items() if name in _PROMPTS}, "row")
        row_id = content.get(ID)
        if row_id is not None and (not isinstance(row_id, (str, int)) or isinstance(row_id, bool)):
            raise InvalidInputError(ID, row_id, "a text or an integer")
        changes = {name: value for name, value in content.items() if name not in (*_PROMPTS, ID)}
        if isinstance(changes.get("logit_bias"), dict):
            changes["logit_bias"] = bias_by_id(changes["logit_bias"])
        if "sampling" in changes:
            raise InvalidInputError("sampling", "given", "its fields by themselves, such as temperature")
        seed = self._options.sampling.seed
        if seed is not None and "seed" not in changes:
            changes["seed"] = derived_seed(seed, row.index)
        options = self._options.changed(**changes)
        is_chat = wants_chat(self._tokenizer, self._use_chat, options.enable_thinking)
        return RowRequest(row_id, as_asked(prompt, is_chat), options)


def row_id_of(row: RawRow) -> str | int | None:
    """The id of a row that may be unusable otherwise, if it has a usable one."""
    try:
        row_id = _parse(row.content).get(ID)
    except InvalidInputError:
        return None
    return row_id if isinstance(row_id, (str, int)) and not isinstance(row_id, bool) else None


def at_line(error: InvalidInputError, file: str, row: RawRow) -> InvalidInputError:
    """The same error, with the place of the row in its name."""
    return InvalidInputError(f"{file} line {row.line}: {error.field}", error.value, error.allowed)


def _parse(content: bytes) -> dict[str, Any]:
    try:
        # Of bytes, json takes a byte order mark as well.
        parsed = json.loads(content)
    except (ValueError, RecursionError) as error:
        shown = content[:_MAX_SHOWN].decode("utf-8", "replace")
        raise InvalidInputError("row", shown, f"a JSON object ({error})") from error
    if not isinstance(parsed, dict):
        raise InvalidInputError("row", str(parsed)[:_MAX_SHOWN], "a JSON object")
    return parsed

"""Prompts from the command line, a file or standard input.

A file holds one prompt a line: a JSON object with "prompt" or "messages", or plain text. Empty lines are skipped.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from nemodiff_trt.errors import InvalidInputError
from nemodiff_trt.runtime.numbered_lines import numbered_lines, read_numbered_lines
from nemodiff_trt.runtime.prompts import PromptLine, prompt_of

STDIN = "-"
FIELD = "prompts-file"
ANY_FORM = '--prompt TEXT, --prompts-file FILE or "-" for standard input'


def read_prompts(prompts: list[str], prompts_file: str | None, source: str | None) -> list[PromptLine]:
    """Prompts of the one way that was used to give them.

    Raises:
        InvalidInputError: none or several ways were used, the file cannot be read, or a line is not usable.
    """
    if source is not None and source != STDIN:
        raise InvalidInputError("prompt", source, ANY_FORM)
    given = [bool(prompts), prompts_file is not None, source is not None]
    if sum(given) != 1:
        raise InvalidInputError("prompt", f"{sum(given)} sources of prompts", f"exactly one of {ANY_FORM}")
    if prompts:
        return list(prompts)
    found = [_parse_line(number, line) for number, line in _lines(prompts_file or STDIN)]
    if not found:
        raise InvalidInputError(FIELD, prompts_file or STDIN, "at least one line that is not empty")
    return found


def _lines(file: str) -> list[tuple[int, str]]:
    if file == STDIN:
        return numbered_lines(sys.stdin.buffer.read(), FIELD, file)
    return read_numbered_lines(Path(file), FIELD)


def _parse_line(number: int, line: str) -> PromptLine:
    """A line that starts like a JSON object must be one; any other is the prompt itself."""
    if not line.lstrip().startswith("{"):
        return line
    try:
        content = json.loads(line)
    except ValueError as error:
        raise InvalidInputError(f"{FIELD} line {number}", line[:40], f"a JSON object or plain text ({error})") from error
    return prompt_of(content, f"{FIELD} line {number}")

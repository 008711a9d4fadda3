"""Lines of a text that holds one prompt or request a line."""

from __future__ import annotations

from pathlib import Path

from nemodiff_trt.errors import InvalidInputError


def read_numbered_lines(path: Path, field: str) -> list[tuple[int, str]]:
    """Lines of a UTF-8 file that are not empty, with their numbers from 1.

    Raises:
        InvalidInputError: the file cannot be read or is not UTF-8; the error calls it `field`.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InvalidInputError(field, str(path), f"a readable file ({error.strerror})") from error
    return numbered_lines(content, field, str(path))


def numbered_lines(content: bytes, field: str, name: str) -> list[tuple[int, str]]:
    """The same of bytes that came from `name`."""
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidInputError(field, name, f"UTF-8 text (byte {error.start} is not)") from error
    # Not splitlines(): that also splits at separators which JSON strings and plain text may hold.
    lines = text.replace("\r\n", "\n").split("\n")
    return [(number, line) for number, line in enumerate(lines, start=1) if line.strip()]

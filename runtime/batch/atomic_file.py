"""Write a file in one atomic step: a reader sees all of it or nothing."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterable
from pathlib import Path

# How the name of a file that is not finished ends.
PARTIAL = ".partial"


def write_lines(path: Path, lines: Iterable[bytes]) -> None:
    """Write `lines` beside `path`, sync them to disk and rename.

    Two writers do not disturb each other: the last one to finish has its file under the name.

    Raises:
        OSError: the disk refused; there is nothing new under the name then.
    """
    partial = path.with_name(f".{path.name}-{secrets.token_hex(8)}{PARTIAL}")
    try:
        with partial.open("xb") as file:
            file.writelines(lines)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)

"""Replace a file in one step: a reader finds the old one or the whole new one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replaced_file(path: Path) -> Iterator[Path]:
    """A path beside `path` to write to. It takes that name when the block ends, and is removed if the block fails.

    Raises:
        OSError: the disk refused; what `path` was before is still there.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)

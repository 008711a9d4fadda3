"""Where text goes: results to standard output or a file, everything else to standard error."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemodiff_trt.atomic_file import replaced_file
from nemodiff_trt.errors import InvalidInputError

if TYPE_CHECKING:
    from rich.console import Console

    from nemodiff_trt.runtime.stats import GenerationStats


def write(text: str) -> None:
    """Put `text` on standard output at once, as it is."""
    sys.stdout.write(text)
    sys.stdout.flush()


def write_json(content: dict[str, Any]) -> None:
    """One JSON object on a line of standard output.

    ASCII only: text may hold separators such as U+2028 that readers of lines would take for the end of one.
    """
    write(json.dumps(content, allow_nan=False) + "\n")


def write_atomically(path: Path, content: str) -> None:
    """Put `content` where `path` says, all of it or nothing.

    Raises:
        InvalidInputError: it cannot be written there.
    """
    try:
        with replaced_file(path) as partial:
            partial.write_text(content, encoding="utf-8")
    except OSError as error:
        raise InvalidInputError("output", str(path), f"a file that can be written ({error.strerror})") from error


def notes() -> Console:
    """Console on standard error, for progress and remarks."""
    from rich.console import Console

    return Console(stderr=True, highlight=False)


def stats_line(stats: GenerationStats, finish_reason: str) -> str:
    """Counts and speed of an answer in a few words."""
    parts = [f"{stats.new_tokens} tokens", f"{stats.forward_passes} passes"]
    if stats.tokens_per_forward is not None:
        parts.append(f"{stats.tokens_per_forward:.2f} per pass")
    if stats.mean_accepted is not None:
        parts.append(f"{stats.mean_accepted:.1f} a cycle")
    if stats.tokens_per_second is not None:
        parts.append(f"{stats.tokens_per_second:.0f} tokens/s")
    parts += [f"prefill {stats.prefill_ms:.0f} ms", f"ended by {finish_reason}"]
    return " · ".join(parts)

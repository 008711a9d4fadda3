"""How often a shard was begun in this run: a row that kills every worker it meets must not be handed out for ever."""

from __future__ import annotations

from pathlib import Path

from nemodiff_trt.errors import BatchError
from nemodiff_trt.runtime.batch.atomic_file import PARTIAL


def begin_attempt(part: Path, max_attempts: int) -> None:
    """Note that a worker begins the shard of `part`. Notes are removed with everything partial when a run starts.

    Raises:
        BatchError: it was begun `max_attempts` times and never finished, or the disk refused.
    """
    for number in range(max_attempts):
        try:
            _note(part, number).touch(exist_ok=False)
        except FileExistsError:
            continue
        except OSError as error:
            raise BatchError(f"cannot write beside {part}: {error.strerror}") from error
        return
    raise BatchError(f"{part.name} was begun {max_attempts} times, and each time its worker died (max-attempts)")


def forget_attempts(part: Path, max_attempts: int) -> None:
    """Remove the notes of a part that is there."""
    for number in range(max_attempts):
        _note(part, number).unlink(missing_ok=True)


def _note(part: Path, number: int) -> Path:
    return part.with_name(f".{part.name}-attempt-{number}{PARTIAL}")

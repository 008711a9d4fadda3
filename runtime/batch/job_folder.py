"""The folder of a job: its record, its parts, and a lock that only one run can hold."""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from nemodiff_trt.errors import BatchError, InvalidInputError
from nemodiff_trt.runtime.batch.atomic_file import PARTIAL, write_lines

RECORD_FILE = "job.json"
LOCK_FILE = ".lock"
ANSWERS_FILE = "answers.jsonl"


class JobFolder:
    """A context: inside, no other run writes to the folder. The lock goes with the process, however that ends."""

    def __init__(self, path: Path) -> None:
        """Refuse what is not a job's folder and no place for a new one.

        Raises:
            InvalidInputError: the path is no folder, or holds something else.
        """
        self.path = path.absolute()
        self._lock = -1
        if path.exists() and not path.is_dir():
            raise InvalidInputError("output", str(path), "a folder")
        if path.is_dir() and not (path / RECORD_FILE).exists() and any(entry.name != LOCK_FILE for entry in path.iterdir()):
            raise InvalidInputError("output", str(path), "a new or empty folder, or that of the same job")

    def __enter__(self) -> Self:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(self.path / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise BatchError(f"cannot write to {self.path}: {error.strerror}") from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(self._lock)
            raise InvalidInputError("output", str(self.path), "a folder that no other run is writing to") from error
        # Of workers that were killed. One that outlives its driver fails to publish, and nothing is lost.
        for partial in self.path.glob(f".*{PARTIAL}"):
            partial.unlink(missing_ok=True)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        os.close(self._lock)

    @property
    def answers_path(self) -> Path:
        return self.path / ANSWERS_FILE

    def is_resumed(self, record: dict[str, Any]) -> bool:
        """Whether the folder holds the job that `record` describes; False if it holds none yet.

        Raises:
            InvalidInputError: it holds another job; the error names the first difference.
            BatchError: its record is damaged.
        """
        path = self.path / RECORD_FILE
        if not path.exists():
            return False
        try:
            recorded = json.loads(path.read_bytes())
            differing = [name for name in {**recorded, **record} if recorded.get(name) != record.get(name)]
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise BatchError(f"{path} is damaged: {error}") from error
        for name in differing:
            if name == "sampling":
                own, new = recorded.get(name) or {}, record.get(name) or {}
                name, recorded, record = _first_difference(own, new)
            allowed = f"{recorded.get(name)!r}, with which the job in {self.path} was started; or another output"
            raise InvalidInputError(name, record.get(name), allowed)
        return True

    def start(self, record: dict[str, Any]) -> None:
        """Note which job this is. Called once its rows are known to be usable.

        Raises:
            BatchError: the disk refused.
        """
        try:
            write_lines(self.path / RECORD_FILE, [json.dumps(record, indent=1).encode() + b"\n"])
        except OSError as error:
            raise BatchError(f"cannot write to {self.path}: {error.strerror}") from error


def _first_difference(own: dict[str, Any], new: dict[str, Any]) -> tuple[str, dict[str, Any], dict[str, Any]]:
    return next(name for name in {**own, **new} if own.get(name) != new.get(name)), own, new

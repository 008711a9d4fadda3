"""Write a folder in one atomic step: a sibling folder is filled, synced to disk and renamed.

A reader sees the old folder or the new one, never a part of either. The folder being filled is locked by its writer, so the
next run can tell the leftover of a killed one from the work of one that is still running.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import secrets
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from nemodiff_trt.errors import InvalidInputError, NemodiffError

# linux/fcntl.h and linux/fs.h
_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


@dataclass(frozen=True, slots=True)
class FolderKind:
    """What a folder is meant to be: only another one of its kind is ever replaced.

    Args:
        name: what messages call it.
        is_one: tells whether an existing folder is of this kind.
        failure: class of the error that is raised where the disk refuses.
    """

    name: str
    is_one: Callable[[Path], bool]
    failure: type[NemodiffError]


def check_output(output: Path, force: bool, kind: FolderKind) -> None:
    """Refuse an output that must not be replaced, before any work is done.

    Raises:
        InvalidInputError: `output` exists and holds something of another kind, or of this kind and `force` is off.
    """
    if output.is_symlink() or (output.exists() and not output.is_dir()):
        raise InvalidInputError("output", str(output), "a folder")
    if output.is_dir() and any(output.iterdir()):
        if not kind.is_one(output):
            raise InvalidInputError(
                "output", str(output), f"a new or empty folder; this one holds something that is not a {kind.name}"
            )
        if not force:
            raise InvalidInputError(
                "output", str(output), f"a new or empty folder, or the force option to replace the {kind.name} in it"
            )


class AtomicFolder:
    """Context manager around one write. Fill `path`, then call `rename`; leaving without it removes every trace."""

    def __init__(self, output: Path, force: bool, kind: FolderKind) -> None:
        """Check `output` and note where to write; nothing is written before the context is entered.

        Raises:
            InvalidInputError: see `check_output`.
        """
        # Resolved: the sibling must lie on the same file system whatever the working directory does later.
        self.output = output.absolute()
        self.force = force
        self.kind = kind
        check_output(self.output, force, kind)
        self.path = self.output.parent / f"{self._prefix}{secrets.token_hex(8)}"
        self._lock = -1

    @property
    def _prefix(self) -> str:
        return f".{self.output.name}.building-"

    def __enter__(self) -> Self:
        try:
            self.output.parent.mkdir(parents=True, exist_ok=True)
            self._remove_leftovers()
            self.path.mkdir()
            self._lock = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise self.kind.failure(f"cannot write next to {self.output}: {error.strerror}") from error
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        # After an exchange this path holds the replaced folder.
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._lock)

    def rename(self) -> None:
        """Sync everything to disk and give the folder its name.

        Raises:
            InvalidInputError: another run has put something at the output meanwhile.
            NemodiffError: of the kind's class; the disk refused.
        """
        try:
            _sync_tree(self.path)
            check_output(self.output, self.force, self.kind)
            _replace(self.path, self.output)
            _sync(self.output.parent)
        except OSError as error:
            raise self.kind.failure(f"cannot write {self.output}: {error.strerror}") from error

    def _remove_leftovers(self) -> None:
        for leftover in self.output.parent.glob(f"{self._prefix}*"):
            try:
                handle = os.open(leftover, os.O_RDONLY | os.O_DIRECTORY)
            except OSError:
                continue
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(leftover, ignore_errors=True)
            except BlockingIOError:
                continue
            finally:
                os.close(handle)


def _replace(built: Path, output: Path) -> None:
    """Give `built` the name `output`; a folder that was there swaps places in the same instant where the system can."""
    if not output.exists() or not any(output.iterdir()):
        built.rename(output)
    elif not _exchange(built, output):
        # No atomic exchange on this file system: for a moment there is no folder, never half a one.
        replaced = built.with_name(f"{built.name}-replaced")
        output.rename(replaced)
        built.rename(output)
        replaced.rename(built)


def _exchange(first: Path, second: Path) -> bool:
    """Swap two names atomically through renameat2(2); False where kernel, C library or file system cannot."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    if rename(_AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second), _RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EXDEV):
        return False
    raise OSError(code, os.strerror(code))


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _sync_tree(path: Path) -> None:
    for folder, _, files in os.walk(path, topdown=False):
        for name in files:
            _sync(Path(folder) / name)
        _sync(Path(folder))

"""Write a bundle in one atomic step: a sibling folder is filled, synced to disk and renamed.

A reader sees the old bundle or the new one, never a part of either. The folder being filled is locked by its writer, so the
next build can tell the leftover of a killed one from the work of one that is still running.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import secrets
import shutil
from pathlib import Path
from types import TracebackType
from typing import Self

from nemodiff_trt.bundle.manifest import MANIFEST_FILE, FileEntry, Manifest
from nemodiff_trt.bundle.reader import file_entry, list_files
from nemodiff_trt.errors import BundleError, InvalidInputError

# linux/fcntl.h and linux/fs.h
_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


def check_output(output: Path, force: bool) -> None:
    """Refuse an output that must not be replaced, before any work is done.

    Raises:
        InvalidInputError: `output` exists and holds something other than a bundle, or a bundle and `force` is off.
    """
    if output.is_symlink() or (output.exists() and not output.is_dir()):
        raise InvalidInputError("output", str(output), "a folder")
    if output.is_dir() and any(output.iterdir()):
        if not (output / MANIFEST_FILE).is_file():
            raise InvalidInputError(
                "output", str(output), "a new or empty folder; this one holds something that is not a bundle"
            )
        if not force:
            raise InvalidInputError(
                "output", str(output), "a new or empty folder, or the force option to replace the bundle in it"
            )


class BundleWriter:
    """Context manager around one build. Fill `path`, then call `publish`; leaving without it removes every trace."""

    def __init__(self, output: Path, force: bool = False) -> None:
        """Check `output` and note where to build; nothing is written before the context is entered.

        Raises:
            InvalidInputError: see `check_output`.
        """
        # Resolved: the sibling must lie on the same file system whatever the working directory does later.
        self.output = output.absolute()
        self.force = force
        check_output(self.output, force)
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
            raise BundleError(f"cannot write next to {self.output}: {error.strerror}") from error
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        # After an exchange this path holds the replaced bundle.
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._lock)

    def file_entries(self) -> dict[str, FileEntry]:
        """Checksums of all files written so far, for the manifest."""
        return {name: file_entry(self.path / name) for name in list_files(self.path)}

    def publish(self, manifest: Manifest) -> None:
        """Write `manifest.json`, sync everything to disk and give the bundle its name.

        Raises:
            InvalidInputError: another build has put something at the output meanwhile.
            BundleError: the disk refused.
        """
        try:
            (self.path / MANIFEST_FILE).write_bytes(manifest.to_bytes())
            _sync_tree(self.path)
            check_output(self.output, self.force)
            _replace(self.path, self.output)
            _sync(self.output.parent)
        except OSError as error:
            raise BundleError(f"cannot write {self.output}: {error.strerror}") from error

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
    """Give `built` the name `output`; a bundle that was there swaps places in the same instant where the system can."""
    if not output.exists() or not any(output.iterdir()):
        built.rename(output)
    elif not _exchange(built, output):
        # No atomic exchange on this file system: for a moment there is no bundle, never half a one.
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

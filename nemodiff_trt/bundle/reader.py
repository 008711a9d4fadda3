"""Open a bundle and make sure it is what was written."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemodiff_trt.bundle.manifest import MANIFEST_FILE, REPORT_FILE, TOKENIZER_DIR, WEIGHTS_FILE, FileEntry, Manifest
from nemodiff_trt.errors import BundleError
from nemodiff_trt.vocabulary import Role


@dataclass(frozen=True, slots=True)
class Bundle:
    """An opened bundle: its folder and its manifest. Engines and weights stay on disk."""

    path: Path
    manifest: Manifest

    @classmethod
    def open(cls, path: str | Path, verify: bool = True) -> Bundle:
        """Read the manifest of the bundle at `path` and compare the folder with it.

        Args:
            path: the bundle's folder.
            verify: also compare the SHA-256 of every file; otherwise names and sizes only.

        Raises:
            BundleError: names the first file that is missing, truncated, altered or unknown.
        """
        path = Path(path)
        try:
            raw = (path / MANIFEST_FILE).read_bytes()
        except OSError as error:
            raise BundleError(f"{path} is not a bundle: {MANIFEST_FILE} cannot be read ({error.strerror})") from error
        manifest = Manifest.from_bytes(raw)
        _check_names(path, manifest)
        for name, entry in sorted(manifest.files.items()):
            _check_file(path, name, entry, verify)
        return cls(path, manifest)

    def engine_path(self, role: Role) -> Path:
        """File of the engine that serves `role`.

        Raises:
            BundleError: the bundle was built for modes that do not use this role.
        """
        if role not in self.manifest.roles:
            modes = ", ".join(self.manifest.modes)
            raise BundleError(f"{self.path} has no engine for role {role}; it was built for the modes {modes}")
        return self.path / self.manifest.roles[role].file

    @property
    def weights_path(self) -> Path:
        return self.path / WEIGHTS_FILE

    @property
    def tokenizer_dir(self) -> Path:
        return self.path / TOKENIZER_DIR

    def report(self) -> dict[str, Any]:
        """Parsed `report.json`: passes with counts and reasons, nodes, sizes, stage times, peak memory."""
        content: dict[str, Any] = json.loads((self.path / REPORT_FILE).read_text(encoding="utf-8"))
        return content


def list_files(path: Path) -> list[str]:
    """Names, relative to `path` with forward slashes, of everything in it that is not a folder; sorted."""
    found = []
    for folder, folders, files in os.walk(path):
        # A link to a folder would be walked past: it counts as a file, and so as unknown.
        links = [name for name in folders if (Path(folder) / name).is_symlink()]
        found += [(Path(folder) / name).relative_to(path).as_posix() for name in files + links]
    return sorted(found)


def file_entry(path: Path) -> FileEntry:
    """Checksum and size of the file at `path`."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return FileEntry(digest, path.stat().st_size)


def _check_names(path: Path, manifest: Manifest) -> None:
    present = set(list_files(path)) - {MANIFEST_FILE}
    for name in sorted(manifest.files.keys() - present):
        raise BundleError(f"{name}: missing from the bundle {path}")
    for name in sorted(present - manifest.files.keys()):
        raise BundleError(f"{name}: not part of the bundle {path}; remove it or build the bundle again")


def _check_file(path: Path, name: str, entry: FileEntry, verify: bool) -> None:
    try:
        num_bytes = (path / name).stat().st_size
        if num_bytes != entry.num_bytes:
            kind = "truncated" if num_bytes < entry.num_bytes else "longer than written"
            raise BundleError(f"{name}: {kind}, {num_bytes} bytes instead of {entry.num_bytes}")
        if verify and file_entry(path / name).sha256 != entry.sha256:
            raise BundleError(f"{name}: altered since it was written, its checksum does not match")
    except OSError as error:
        raise BundleError(f"{name}: cannot be read ({error.strerror})") from error

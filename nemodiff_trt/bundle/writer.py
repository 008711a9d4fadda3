"""Write a bundle in one atomic step; see `atomic_folder`."""

from __future__ import annotations

from pathlib import Path

from nemodiff_trt import atomic_folder
from nemodiff_trt.atomic_folder import AtomicFolder, FolderKind
from nemodiff_trt.bundle.manifest import MANIFEST_FILE, FileEntry, Manifest
from nemodiff_trt.bundle.reader import file_entry, list_files
from nemodiff_trt.errors import BundleError

_BUNDLE = FolderKind("bundle", lambda path: (path / MANIFEST_FILE).is_file(), BundleError)


def check_output(output: Path, force: bool) -> None:
    """Refuse an output that must not be replaced, before any work is done.

    Raises:
        InvalidInputError: `output` exists and holds something other than a bundle, or a bundle and `force` is off.
    """
    atomic_folder.check_output(output, force, _BUNDLE)


class BundleWriter(AtomicFolder):
    """Context manager around one build. Fill `path`, then call `publish`; leaving without it removes every trace."""

    def __init__(self, output: Path, force: bool = False) -> None:
        """Check `output` and note where to build; nothing is written before the context is entered.

        Raises:
            InvalidInputError: see `check_output`.
        """
        super().__init__(output, force, _BUNDLE)

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
        except OSError as error:
            raise BundleError(f"cannot write {self.output}: {error.strerror}") from error
        self.rename()

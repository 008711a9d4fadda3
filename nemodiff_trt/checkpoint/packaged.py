"""Checkpoints that come with the package, by name."""

from __future__ import annotations

from pathlib import Path

from nemodiff_trt.errors import CheckpointError

PACKAGED_CHECKPOINTS = ("nemodiff-tiny",)
_PACKAGED_DIR = Path(__file__).resolve().parent.parent / "checkpoints"


def resolve_checkpoint(name_or_path: str | Path) -> Path:
    """Folder of a checkpoint given by the name of a packaged one or by its path. A packaged name goes before a folder.

    Raises:
        CheckpointError: neither a packaged name nor an existing folder.
    """
    is_packaged = str(name_or_path) in PACKAGED_CHECKPOINTS
    path = _PACKAGED_DIR / name_or_path if is_packaged else Path(name_or_path)
    if not path.is_dir():
        raise CheckpointError("checkpoint", str(name_or_path), f"an existing folder or {' or '.join(PACKAGED_CHECKPOINTS)}")
    return path

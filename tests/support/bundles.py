"""Small bundles, and ways to change one that its checksums do not reveal."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

from nemodiff_trt.build_engines.compile import compile_bundle
from nemodiff_trt.bundle import Bundle, Manifest, RoleEngine
from nemodiff_trt.bundle.reader import file_entry, list_files
from nemodiff_trt.options import CompileOptions
from nemodiff_trt.vocabulary import Role

MANIFEST_FILE = "manifest.json"


def build_bundle(checkpoint: Path, output: Path, **changes: Any) -> Path:
    """Compile `checkpoint` with small limits and return the bundle's folder."""
    limits = {"max_batch_size": 4, "max_seq_len": 128, "block_length": 8, "prefill_chunk": 16}
    compile_bundle(CompileOptions(checkpoint=str(checkpoint), output=output, **{**limits, **changes}))
    return output


def copy_bundle(bundle_dir: Path, output: Path) -> Path:
    return Path(shutil.copytree(bundle_dir, output))


def rewrite_manifest(bundle_dir: Path, **changes: Any) -> None:
    """Write the manifest again with `changes` and with the checksums of the files as they are now."""
    manifest = Manifest.from_bytes((bundle_dir / MANIFEST_FILE).read_bytes())
    names = [name for name in list_files(bundle_dir) if name != MANIFEST_FILE]
    files = {name: file_entry(bundle_dir / name) for name in names}
    changed = dataclasses.replace(manifest, files=files, **changes)
    (bundle_dir / MANIFEST_FILE).write_bytes(changed.to_bytes())


def swap_engine(bundle_dir: Path, role: Role, by: Role) -> None:
    """Let the engine of another role serve `role`."""
    roles = dict(Bundle.open(bundle_dir, verify=False).manifest.roles)
    rewrite_manifest(bundle_dir, roles={**roles, role: RoleEngine(roles[by].file)})

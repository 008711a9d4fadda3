"""The tokenizer's part of a bundle."""

from __future__ import annotations

import shutil
from pathlib import Path

from nemodiff_trt.bundle.manifest import TOKENIZER_DIR
from nemodiff_trt.checkpoint.layout import TOKENIZER_FILES

# Beside the files a tokenizer is read from, what other tools write and read there.
TOKENIZER_SIDE_FILES = ("special_tokens_map.json", "added_tokens.json")
_COPIED = (*TOKENIZER_FILES, *TOKENIZER_SIDE_FILES, "generation_config.json")


def copy_tokenizer(checkpoint_dir: Path, bundle_dir: Path) -> None:
    """Copy the tokenizer's files that `checkpoint_dir` has into a bundle that has no tokenizer yet."""
    target = bundle_dir / TOKENIZER_DIR
    target.mkdir()
    for name in _COPIED:
        if (checkpoint_dir / name).is_file():
            shutil.copyfile(checkpoint_dir / name, target / name)

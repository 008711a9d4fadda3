"""What makes a checkpoint another one."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from nemodiff_trt.checkpoint import layout
from nemodiff_trt.checkpoint.adapter import DraftAdapter
from nemodiff_trt.checkpoint.tensor_file import TensorFile


def checkpoint_identity(facts: Any, files: Iterable[TensorFile], adapter: DraftAdapter | None, path: Path) -> str:
    """SHA-256 that changes with the facts, the weights, the adapter and the tokenizer.

    Weight files above 256 MiB contribute one page of every MiB (see `TensorFile.fingerprint`).

    Args:
        facts: JSON values, such as the configuration.
        files: of the weights; one that holds several tensors may be given for each of them.
        adapter: if there is one.
        path: folder of the tokenizer.
    """
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for file in dict.fromkeys(files):
        digest.update(file.fingerprint().encode())
    digest.update((adapter.fingerprint() if adapter else "no adapter").encode())
    for name in layout.TOKENIZER_FILES:
        tokenizer_file = path / name
        digest.update(hashlib.sha256(tokenizer_file.read_bytes()).digest() if tokenizer_file.exists() else b"absent")
    return digest.hexdigest()

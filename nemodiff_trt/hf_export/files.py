"""The files beside the weights: configuration, generation settings, tokenizer."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from nemodiff_trt.bundle.tokenizer_files import TOKENIZER_SIDE_FILES
from nemodiff_trt.checkpoint.layout import TOKENIZER_FILES
from nemodiff_trt.checkpoint.ministral3 import MINISTRAL3_MODEL_TYPE
from nemodiff_trt.config import CONFIG_FILE, ModelConfig, read_json_object
from nemodiff_trt.errors import CheckpointError

GENERATION_CONFIG_FILE = "generation_config.json"


def check_tokenizer(directory: Path) -> None:
    """A server needs the tokenizer in the folder it serves.

    Raises:
        CheckpointError: `directory` has none.
    """
    name = TOKENIZER_FILES[0]
    if not (directory / name).is_file():
        raise CheckpointError(name, "missing", f"a tokenizer in {directory}, which servers read from the exported folder")


def copy_tokenizer_files(source: Path, target: Path) -> None:
    """Copy what `source` has of the tokenizer's files."""
    for name in (*TOKENIZER_FILES, *TOKENIZER_SIDE_FILES):
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)


def generation_config(config: ModelConfig, directory: Path) -> dict[str, Any]:
    """Content of `generation_config.json`: that of the source, with the model's ids and the mask id never predicted.

    Raises:
        CheckpointError: the source has such a file and it cannot be read.
    """
    path = directory / GENERATION_CONFIG_FILE
    inherited = read_json_object(path, GENERATION_CONFIG_FILE) if path.exists() else {}
    inherited.pop("_from_model_config", None)
    return {
        "eos_token_id": config.eos_token_id,
        **inherited,
        "bos_token_id": config.bos_token_id,
        "suppress_tokens": sorted({config.mask_token_id, *(inherited.get("suppress_tokens") or [])}),
    }


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write one JSON object, indented."""
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def is_exported(directory: Path) -> bool:
    """Whether `directory` holds a Ministral3 checkpoint, which `--force` may replace."""
    try:
        content = read_json_object(directory / CONFIG_FILE, CONFIG_FILE)
    except CheckpointError:
        return False
    return content.get("model_type") == MINISTRAL3_MODEL_TYPE

"""Fixtures for all tests, and a time limit for each folder of them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from nemodiff_trt.checkpoint import Checkpoint
from nemodiff_trt.config import ModelConfig
from support.checkpoints import random_checkpoint, tiny_config

# Seconds one unmarked test of a folder below tests/ may take on a busy two-core machine; "." is this folder itself. A new
# folder needs an entry. Tests marked slow or gpu may take SLOW_TIMEOUT_S.
FOLDER_TIMEOUTS_S = {
    ".": 120,
    "build_engines": 120,
    "bundle": 120,
    "model": 120,
    "passes": 60,
    "plugins": 60,
    "quantization": 120,
    "runtime": 120,
    "training": 120,
}
SLOW_TIMEOUT_S = 1800
_ROOT = Path(__file__).parent


def folder_timeout_s(folder: str) -> int:
    """Time limit of the tests in `folder`, relative to tests/; subfolders share that of the topmost one."""
    top = folder.split("/", maxsplit=1)[0]
    if top not in FOLDER_TIMEOUTS_S:
        raise pytest.UsageError(f"tests/{folder} has no time limit: add it to FOLDER_TIMEOUTS_S in tests/conftest.py")
    return FOLDER_TIMEOUTS_S[top]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        is_long = any(item.get_closest_marker(name) for name in ("slow", "gpu"))
        seconds = folder_timeout_s(item.path.parent.relative_to(_ROOT).as_posix())
        if item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(SLOW_TIMEOUT_S if is_long else seconds))


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    # Models are tiny: more threads only wait for each other.
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def small_config() -> ModelConfig:
    return tiny_config()


@pytest.fixture(scope="session")
def tiny_checkpoint_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random checkpoint with adapter and tokenizer. Shared: do not write to it, copy it."""
    return random_checkpoint(tmp_path_factory.mktemp("checkpoint") / "tiny")


@pytest.fixture(scope="session")
def tiny_checkpoint(tiny_checkpoint_dir: Path) -> Checkpoint:
    return Checkpoint.open(tiny_checkpoint_dir)


@pytest.fixture
def checkpoint_copy(tiny_checkpoint_dir: Path, tmp_path: Path) -> Path:
    """The tiny checkpoint in a folder of its own, to be changed."""
    return Path(shutil.copytree(tiny_checkpoint_dir, tmp_path / "copy"))

"""Fixtures for all tests, and a time limit for each folder of them."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import torch

from nemodiff_trt.bundle import Bundle
from nemodiff_trt.checkpoint import Checkpoint
from nemodiff_trt.config import ModelConfig
from support.bundles import build_bundle
from support.checkpoints import random_checkpoint, tiny_config
from support.time_limits import SLOW_TIMEOUT_S, folder_timeout_s

_ROOT = Path(__file__).parent
MAX_WORKERS = 4


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """One worker a processor for all unmarked tests; none for chosen files, nor for marked tests, some of which take times."""
    is_whole_suite = config.args_source is pytest.Config.ArgsSource.TESTPATHS
    is_unmarked = config.option.markexpr in config.getini("addopts")
    num_processors = len(os.sched_getaffinity(0))
    return min(num_processors, MAX_WORKERS) if is_whole_suite and is_unmarked and num_processors > 1 else 0


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        is_long = any(item.get_closest_marker(name) for name in ("slow", "gpu", "triton", "ray"))
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


@pytest.fixture(scope="session")
def tiny_bundle_dir(tiny_checkpoint_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Bundle of the tiny checkpoint with all modes. Shared: do not write to it, copy it."""
    return build_bundle(tiny_checkpoint_dir, tmp_path_factory.mktemp("bundle") / "tiny")


@pytest.fixture(scope="session")
def tiny_bundle(tiny_bundle_dir: Path) -> Bundle:
    return Bundle.open(tiny_bundle_dir)


@pytest.fixture
def checkpoint_copy(tiny_checkpoint_dir: Path, tmp_path: Path) -> Path:
    """The tiny checkpoint in a folder of its own, to be changed."""
    return Path(shutil.copytree(tiny_checkpoint_dir, tmp_path / "copy"))

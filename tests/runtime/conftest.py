"""A bundle with the role quadratic, built once for all tests of this folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from nemodiff_trt.bundle import Bundle
from nemodiff_trt.vocabulary import Mode
from support.bundles import build_bundle


@pytest.fixture(scope="session")
def quadratic_bundle(tiny_checkpoint_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Bundle with the role quadratic and with logits. Shared: do not write to it, copy it."""
    modes = (Mode.AR, Mode.SELF_SPECULATION, Mode.QUADRATIC)
    folder = tmp_path_factory.mktemp("bundle") / "quadratic"
    return Bundle.open(build_bundle(tiny_checkpoint_dir, folder, modes=modes, quadratic_block_length=4, sampling=True))

"""Fixtures for the tests of operators: an interpreter of Triton kernels, fresh random numbers."""

from __future__ import annotations

import secrets
from collections.abc import Iterator

import pytest
import torch

from support.interpreter import Interpreter


@pytest.fixture(scope="session")
def interpreter() -> Iterator[Interpreter]:
    worker = Interpreter()
    yield worker
    worker.close()


@pytest.fixture
def random() -> torch.Generator:
    """Fresh numbers at every run; the seed is shown when a test fails."""
    seed = secrets.randbits(31)
    print(f"seed {seed}")
    return torch.Generator().manual_seed(seed)

from __future__ import annotations

import pytest

from support.rtx_networks import require_tensorrt_rtx


@pytest.fixture(scope="session")
def tensorrt_rtx() -> object:
    """Fails the test where the package is missing."""
    return require_tensorrt_rtx()

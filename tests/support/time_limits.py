"""How long a test may take, by the folder it is in."""

from __future__ import annotations

import pytest

# Seconds one unmarked test of a folder below tests/ may take on a busy two-core machine; "." is this folder itself. A new
# folder needs an entry. Tests marked slow or gpu may take SLOW_TIMEOUT_S.
FOLDER_TIMEOUTS_S = {
    ".": 120,
    "batch": 120,
    "bench": 120,
    "build_engines": 120,
    "bundle": 120,
    "gpu": 120,
    "model": 120,
    "passes": 60,
    "plan_audit": 60,
    "plugins": 60,
    "quantization": 120,
    "runtime": 120,
    "serving": 120,
    "training": 120,
}
SLOW_TIMEOUT_S = 1800


def folder_timeout_s(folder: str) -> int:
    """Time limit of the tests in `folder`, relative to tests/; subfolders share that of the topmost one."""
    top = folder.split("/", maxsplit=1)[0]
    if top not in FOLDER_TIMEOUTS_S:
        raise pytest.UsageError(
            f"tests/{folder} has no time limit: add it to FOLDER_TIMEOUTS_S in tests/support/time_limits.py"
        )
    return FOLDER_TIMEOUTS_S[top]

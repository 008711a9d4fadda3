"""A missing compiler fails the tests that need it, so that a green run means they ran."""

from __future__ import annotations

import importlib.util

import pytest

from support.rtx_networks import require_tensorrt_rtx


def test_a_missing_compiler_is_a_failure_that_names_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(RuntimeError, match="tensorrt-rtx-cu13"):
        require_tensorrt_rtx()

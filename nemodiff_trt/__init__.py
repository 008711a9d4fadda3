"""Tri-mode decoding of Nemotron-Labs-Diffusion checkpoints. Importing this package loads no backend."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nemodiff_trt.runtime.answer import GenerationResult as GenerationResult
    from nemodiff_trt.runtime.answer import StreamEvent as StreamEvent
    from nemodiff_trt.runtime.engine import AsyncTriModeEngine as AsyncTriModeEngine
    from nemodiff_trt.runtime.engine import EngineOptions as EngineOptions
    from nemodiff_trt.runtime.engine import TriModeEngine as TriModeEngine
    from nemodiff_trt.runtime.options import GenerationOptions as GenerationOptions
    from nemodiff_trt.runtime.tri_mode_lm import TriModeLM as TriModeLM

# Public name -> the module that defines it, imported at first use.
_PUBLIC = {
    "AsyncTriModeEngine": "nemodiff_trt.runtime.engine",
    "EngineOptions": "nemodiff_trt.runtime.engine",
    "GenerationOptions": "nemodiff_trt.runtime.options",
    "GenerationResult": "nemodiff_trt.runtime.answer",
    "StreamEvent": "nemodiff_trt.runtime.answer",
    "TriModeEngine": "nemodiff_trt.runtime.engine",
    "TriModeLM": "nemodiff_trt.runtime.tri_mode_lm",
}


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_PUBLIC])

"""The build key: equal keys mean interchangeable bundles."""

from __future__ import annotations

import hashlib
import json
import platform
from importlib import metadata

from nemodiff_trt.bundle.manifest import SCHEMA_VERSION
from nemodiff_trt.cpu_features import cpu_features
from nemodiff_trt.options import CompileOptions
from nemodiff_trt.vocabulary import Target

_COMMON = ("nemodiff_trt", "torch")
_TOOLS: dict[Target, tuple[str, ...]] = {
    Target.ONNXRUNTIME: (*_COMMON, "onnx", "onnxruntime"),
    Target.TENSORRT_RTX: (*_COMMON, "tensorrt-rtx-cu13"),
    Target.TENSORRT: (*_COMMON, "tensorrt"),
    Target.INDUCTOR: _COMMON,
}


def tool_versions(target: Target, plugins: bool = False) -> dict[str, str]:
    """Versions of everything that shapes an engine of `target`; for machine code, also the instruction sets under "cpu".

    With `plugins`, engines of TensorRT hold what Triton compiled.
    """
    tools = (*_TOOLS[target], "triton") if plugins and target is Target.TENSORRT else _TOOLS[target]
    versions = {"python": platform.python_version(), **{name: metadata.version(name) for name in tools}}
    return versions | ({"cpu": " ".join(cpu_features())} if target is Target.INDUCTOR else {})


def build_key(checkpoint_identity: str, options: CompileOptions, versions: dict[str, str]) -> str:
    """SHA-256 over the checkpoint's identity, the build fields of the options, tool versions and the manifest schema."""
    parts = {
        "checkpoint": checkpoint_identity,
        "options": options.build_fields(),
        "versions": versions,
        "schema_version": SCHEMA_VERSION,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

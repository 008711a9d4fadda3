"""`report.json`: what the compiler did, in numbers."""

from __future__ import annotations

import dataclasses
import resource
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemodiff_trt.build_engines.parity import ParityResult
from nemodiff_trt.build_engines.prepack import PrepackReport
from nemodiff_trt.build_engines.targets.onnxruntime import EngineFile
from nemodiff_trt.bundle.reader import list_files
from nemodiff_trt.passes.base import PassReport
from nemodiff_trt.passes.graph import StepGraph
from nemodiff_trt.vocabulary import Role

# ru_maxrss is in KiB on Linux.
_RSS_UNIT_BYTES = 1024


@dataclass(frozen=True, slots=True)
class RoleGraph:
    """The step graph of one role and what its passes reported."""

    graph: StepGraph
    passes: tuple[PassReport, ...]


@dataclass(frozen=True, slots=True)
class BuiltParts:
    """Everything a finished build can tell of itself."""

    roles: dict[Role, RoleGraph]
    engines: list[EngineFile]
    packed: PrepackReport
    parity: list[ParityResult]


def report_content(built: BuiltParts, build_key: str, stage_seconds: dict[str, float], bundle_dir: Path) -> dict[str, Any]:
    """Content of `report.json`.

    Args:
        built: parts of the build.
        build_key: of the manifest.
        stage_seconds: stages finished so far.
        bundle_dir: folder whose file sizes are reported.
    """
    return {
        "build_key": build_key,
        "passes": {role: [_pass_report(report) for report in entry.passes] for role, entry in built.roles.items()},
        "engines": {
            engine.file: {
                "roles": list(engine.roles),
                "num_nodes": sum(engine.num_nodes.values()),
                "num_nodes_per_op": engine.num_nodes,
            }
            for engine in built.engines
        },
        "packed_matrices": dataclasses.asdict(built.packed),
        "parity": {
            result.role: {
                "cache_error": result.cache_error,
                "confidence_error": result.confidence_error,
                "tolerance": result.tolerance,
            }
            for result in built.parity
        },
        "file_bytes": {name: (bundle_dir / name).stat().st_size for name in list_files(bundle_dir)},
        "stage_seconds": {name: round(seconds, 3) for name, seconds in stage_seconds.items()},
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _RSS_UNIT_BYTES,
    }


def _pass_report(report: PassReport) -> dict[str, Any]:
    return {
        "name": report.name,
        "count": report.count,
        "refusals": [dataclasses.asdict(refusal) for refusal in report.refusals],
    }

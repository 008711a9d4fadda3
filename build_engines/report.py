"""`report.json`: what the compiler did, in numbers."""

from __future__ import annotations

import dataclasses
import resource
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemodiff_trt.build_engines.targets.build_target import BuiltEngines
from nemodiff_trt.bundle.reader import list_files
from nemodiff_trt.passes.base import PassReport
from nemodiff_trt.passes.graph import NODE_FORM, NODE_OPERATOR, StepGraph, operator_name
from nemodiff_trt.plugins import find_op
from nemodiff_trt.plugins.realisations import PLUGIN, realisation
from nemodiff_trt.vocabulary import Role, Target

# ru_maxrss is in KiB on Linux.
_RSS_UNIT_BYTES = 1024


@dataclass(frozen=True, slots=True)
class RoleGraph:
    """The step graph of one role and what its passes reported."""

    graph: StepGraph
    passes: tuple[PassReport, ...]


def report_content(
    roles: dict[Role, RoleGraph], built: BuiltEngines, build_key: str, stage_seconds: dict[str, float], bundle_dir: Path
) -> dict[str, Any]:
    """Content of `report.json`.

    Args:
        roles: graphs and what their passes reported.
        built: gives the target's own entries.
        build_key: of the manifest.
        stage_seconds: stages finished so far.
        bundle_dir: folder whose file sizes are reported.
    """
    return {
        "build_key": build_key,
        "passes": {role: [_pass_report(report) for report in entry.passes] for role, entry in roles.items()},
        **built.report,
        "file_bytes": {name: (bundle_dir / name).stat().st_size for name in list_files(bundle_dir)},
        "stage_seconds": {name: round(seconds, 3) for name, seconds in stage_seconds.items()},
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _RSS_UNIT_BYTES,
    }


def realised_operators(graphs: Iterable[StepGraph], target: Target) -> dict[str, str]:
    """Name -> what realises the operator on `target`, of every operator in `graphs` after their pipelines."""
    found = {}
    for node in (node for graph in graphs for node in graph.graph.nodes):
        name = operator_name(node) or node.meta.get(NODE_OPERATOR)
        if name is not None:
            found[name] = PLUGIN if NODE_FORM in node.meta else realisation(find_op(name), target)
    return dict(sorted(found.items()))


def _pass_report(report: PassReport) -> dict[str, Any]:
    return {
        "name": report.name,
        "count": report.count,
        "refusals": [dataclasses.asdict(refusal) for refusal in report.refusals],
    }

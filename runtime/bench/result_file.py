"""The file of a run: one JSON object with a schema version, checked when it is read."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nemodiff_trt.bundle import Bundle
from nemodiff_trt.errors import InvalidInputError
from nemodiff_trt.runtime.bench.lookup_verdict import lookup_verdicts
from nemodiff_trt.runtime.bench.measure import hardware, versions
from nemodiff_trt.runtime.bench.run import settings_as_plain_values
from nemodiff_trt.runtime.bench.settings import BenchSettings
from nemodiff_trt.runtime.bench.workload import Workload
from nemodiff_trt.runtime.planner.calibrate import device_name
from nemodiff_trt.runtime.planner.latency_model import StepTime

SCHEMA = "nemodiff-bench"
SCHEMA_VERSION = 2
_RUN_FIELDS = (
    "workload",
    "case",
    "concurrency",
    "tokens_per_forward",
    "categories",
    "system_tokens_per_second",
    "speed_over_ar",
)

Result = dict[str, Any]


def describe_run(
    bundle: Bundle,
    workloads: Sequence[Workload],
    settings: BenchSettings,
    num_threads: int,
    runs: list[dict[str, Any]],
    step_times: Sequence[StepTime],
) -> Result:
    """Everything a reader needs to know of a run, as plain values."""
    manifest = bundle.manifest
    return {
        "schema": SCHEMA,
        "schema_version": SCHEMA_VERSION,
        "device": device_name(manifest.target),
        "bundle": {
            "build_key": manifest.build_key,
            "target": str(manifest.target),
            "precision": str(manifest.precision),
            "num_layers": manifest.model.num_hidden_layers,
            "hidden_size": manifest.model.hidden_size,
        },
        "hardware": hardware(num_threads),
        "versions": versions(),
        "settings": settings_as_plain_values(settings),
        "workloads": [workload.describe() for workload in workloads],
        "runs": runs,
        "lookup_verdicts": lookup_verdicts(runs),
        "step_times": [
            {
                "role": str(each.step.role),
                "batch": each.step.batch,
                "step": each.step.step,
                "history": each.step.history,
                "ms": each.ms,
            }
            for each in step_times
        ],
    }


def read_result(path: Path) -> Result:
    """A run that was written before.

    Raises:
        InvalidInputError: it is no such file, or of another schema version.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InvalidInputError("run", str(path), f"a readable file ({error.strerror})") from error
    except ValueError as error:
        raise InvalidInputError("run", str(path), f"JSON ({error})") from error
    if not isinstance(content, dict) or content.get("schema") != SCHEMA:
        raise InvalidInputError("run", str(path), "a file that nemodiff bench --output wrote")
    if content.get("schema_version") != SCHEMA_VERSION:
        raise InvalidInputError(f"{path}, schema_version", content.get("schema_version"), str(SCHEMA_VERSION))
    for place, run in enumerate(content.get("runs", ())):
        missing = [name for name in _RUN_FIELDS if name not in run]
        if missing:
            raise InvalidInputError(f"{path}, runs[{place}]", sorted(run), f"a run with {', '.join(missing)}")
    return content

"""Two runs side by side: what both measured, as ratios; and why they may not be comparable."""

from __future__ import annotations

from typing import Any

from nemodiff_trt.errors import InvalidInputError
from nemodiff_trt.runtime.bench.result_file import Result

KEY = ("workload", "case", "concurrency")
# Compared as second over first.
NUMBERS = (
    "tokens_per_forward", "reference_tokens_per_forward", "accuracy", "user_tokens_per_second", "system_tokens_per_second",
)  # fmt: skip
# What should be alike if speeds are to be compared, by the field that holds it.
_FACTS = (("device",), ("bundle", "target"), ("bundle", "precision"), ("hardware", "cpu"), ("hardware", "threads_used"))


def compare(first: Result, second: Result) -> dict[str, Any]:
    """Ratios of the cases that both runs have, those that only one has, and differences in what was run.

    Raises:
        InvalidInputError: they have no case in common.
    """
    runs = [{tuple(run[name] for name in KEY): run for run in result["runs"]} for result in (first, second)]
    common = [key for key in runs[0] if key in runs[1]]
    if not common:
        raise InvalidInputError("compare", "two runs without a common case", "runs that share workload, case and concurrency")
    return {
        "differences": _differences(first, second),
        "only_first": [list(key) for key in runs[0] if key not in runs[1]],
        "only_second": [list(key) for key in runs[1] if key not in runs[0]],
        "cases": [
            dict(zip(KEY, key, strict=True)) | {name: _pair(runs[0][key].get(name), runs[1][key].get(name)) for name in NUMBERS}
            for key in common
        ],
    }


def _pair(first: float | None, second: float | None) -> dict[str, float | None]:
    ratio = second / first if first and second is not None else None
    return {"first": first, "second": second, "ratio": ratio}


def _differences(first: Result, second: Result) -> dict[str, list[Any]]:
    found = {}
    for path in _FACTS:
        values = []
        for result in (first, second):
            value: Any = result
            for name in path:
                value = value.get(name) if isinstance(value, dict) else None
            values.append(value)
        if values[0] != values[1]:
            found[".".join(path)] = values
    for name in ("settings", "workloads", "versions"):
        if first.get(name) != second.get(name):
            found[name] = [first.get(name), second.get(name)]
    return found

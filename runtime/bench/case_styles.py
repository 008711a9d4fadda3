"""How a case looks in every plot: a colour for its kind, a dash and a marker for its place among that kind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from nemodiff_trt.runtime.bench.themed_svg import SERIES

Run = dict[str, Any]
_LINES: tuple[Any, ...] = ("-", "--", ":", "-.")
_MARKERS = "osD^vPX*"


@dataclass(frozen=True, slots=True)
class CaseStyle:
    """As Matplotlib takes them."""

    color: str
    line: str
    marker: str


def kind_of(case: str) -> str:
    """A case's name without block length and threshold."""
    return case.partition(" ")[0]


def label_within_kind(case: str) -> str:
    """Block length and threshold of a case; its name if it has none."""
    return case.partition(" ")[2] or case


def cases_by_kind(runs: Sequence[Run]) -> dict[str, list[str]]:
    """Names of all cases, each once, by kind, in the order of `runs`."""
    kinds: dict[str, list[str]] = {}
    for name in dict.fromkeys(run["case"] for run in runs):
        kinds.setdefault(kind_of(name), []).append(name)
    return kinds


def case_styles(runs: Sequence[Run]) -> dict[str, CaseStyle]:
    """A style for every case of a result, the same in all its plots."""
    return {
        name: CaseStyle(SERIES[place % len(SERIES)], _LINES[index % len(_LINES)], _MARKERS[index % len(_MARKERS)])
        for place, names in enumerate(cases_by_kind(runs).values())
        for index, name in enumerate(names)
    }

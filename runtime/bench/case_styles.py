"""How a case looks in every plot: a colour for its kind, a dash and a marker for its place among that kind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from nemodiff_trt.runtime.bench.themed_svg import SERIES

Run = dict[str, Any]
_LINES: tuple[Any, ...] = ("-", "--", ":", "-.")
_MARKERS = "osD^vPX*"
_BLOCK_LENGTH = "B="


@dataclass(frozen=True, slots=True)
class CaseStyle:
    """As Matplotlib takes them."""

    color: str
    line: str
    marker: str


def kind_of(case: str) -> str:
    """A case's name without its block length."""
    return " ".join(part for part in case.split(" ") if not part.startswith(_BLOCK_LENGTH))


def label_within_kind(case: str) -> str:
    """The block length of a case; its name if it has none."""
    return next((part for part in case.split(" ") if part.startswith(_BLOCK_LENGTH)), case)


def cases_by_kind(runs: Sequence[Run]) -> dict[str, list[str]]:
    """Names of all cases, each once, by kind, in the order of `runs`."""
    kinds: dict[str, list[str]] = {}
    for name in dict.fromkeys(run["case"] for run in runs):
        kinds.setdefault(kind_of(name), []).append(name)
    return kinds


def case_styles(runs: Sequence[Run]) -> dict[str, CaseStyle]:
    """A style for every case of a result, the same in all its plots."""
    styles = {}
    for place, names in enumerate(cases_by_kind(runs).values()):
        # Kinds that have to share a colour differ in their markers.
        first = place // len(SERIES) * len(_LINES)
        for index, name in enumerate(names):
            marker = _MARKERS[(first + index) % len(_MARKERS)]
            styles[name] = CaseStyle(SERIES[place % len(SERIES)], _LINES[index % len(_LINES)], marker)
    return styles

"""Which parts of prompts run together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class PromptPart(NamedTuple):
    """What a request in prefill brings to a step."""

    slot: int
    num_cached: int
    num_remaining: int


class PrefillRun(NamedTuple):
    """Neighbouring slots `begin` to `end` - 1 that prefill `step` tokens each, shorter parts padded on the right."""

    begin: int
    end: int
    step: int


def prefill_runs(parts: Sequence[PromptPart], chunk: int, capacity: int) -> list[PrefillRun]:
    """Group prompt parts into runs of neighbouring slots.

    A run is as long as its longest part, at most `chunk` tokens. Parts are left to a run of their own where padding would
    more than double the work or reach behind `capacity`.
    """
    groups: list[list[PromptPart]] = []
    for part in sorted(parts):
        if groups and groups[-1][-1].slot + 1 == part.slot and _fits([*groups[-1], part], chunk, capacity):
            groups[-1].append(part)
        else:
            groups.append([part])
    return [PrefillRun(group[0].slot, group[-1].slot + 1, _step(group, chunk)) for group in groups]


def _step(group: Sequence[PromptPart], chunk: int) -> int:
    return min(chunk, max(part.num_remaining for part in group))


def _fits(group: Sequence[PromptPart], chunk: int, capacity: int) -> bool:
    step = _step(group, chunk)
    useful = sum(min(part.num_remaining, step) for part in group)
    return 2 * useful >= step * len(group) and max(part.num_cached for part in group) + step <= capacity

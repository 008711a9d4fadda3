"""Which rows run together: ranges of neighbouring slots, as an engine takes them."""

from __future__ import annotations

from collections.abc import Iterable

# A gap of so many rows is computed along: on every device measured or modelled another run costs more than two idle rows.
MAX_IDLE_ROWS = 2


def ranges(slots: Iterable[int], max_idle: int = MAX_IDLE_ROWS) -> list[tuple[int, int]]:
    """Ranges (begin, end) that cover `slots`, with at most `max_idle` other rows between two of them.

    A row that only lies between is computed along: what the run writes lies behind its length, where nobody reads.
    """
    found: list[tuple[int, int]] = []
    for slot in sorted(slots):
        if found and slot - found[-1][1] <= max_idle:
            found[-1] = (found[-1][0], slot + 1)
        else:
            found.append((slot, slot + 1))
    return found

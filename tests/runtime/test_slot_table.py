"""Slots of the cache: no hole, lanes side by side, and moves that carry every request to where the table says it is."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemodiff_trt.runtime.engine.slot_table import SlotTable

# (True, lane) joins, (False, index) lets the index-th of those present go.
changes = st.lists(st.tuples(st.booleans(), st.integers(0, 3)), max_size=60)


@given(changes)
def test_rows_follow_the_table_and_lanes_stay_together(changes: list[tuple[bool, int]]) -> None:
    table, rows, lanes = SlotTable(6), [-1] * 6, dict[int, int]()
    for number, (joins, which) in enumerate(changes):
        present = list(lanes)
        if joins and table.num_free:
            moves = table.insert(number, which)
            lanes[number] = which
        elif not joins and present:
            gone = present[which % len(present)]
            moves = table.remove(gone)
            del lanes[gone]
        else:
            continue
        assert len(moves) <= len(set(lanes.values())) + 1
        for request, source, target in moves:
            assert rows[source] == request
            rows[target] = request
        if joins:
            rows[table.slots[number]] = number
        assert rows[: len(lanes)] == table.occupants == sorted(lanes, key=table.slots.__getitem__)
        assert sorted(table.slots.values()) == list(range(len(lanes)))
        of_slots = [lanes[request] for request in table.occupants]
        assert sum(a != b for a, b in itertools.pairwise(of_slots)) == max(len(set(of_slots)) - 1, 0)
        assert (len(table), table.num_free) == (len(lanes), 6 - len(lanes))


def test_refuses_what_has_no_place() -> None:
    table = SlotTable(1)
    table.insert(1, "ar")
    with pytest.raises(ValueError, match="request 2 cannot get a slot: 1 of 1 in use"):
        table.insert(2, "ar")
    with pytest.raises(KeyError):
        table.remove(2)

"""Admission, grouping and kept prefixes: the parts of the engine loop that are plain bookkeeping."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemodiff_trt.errors import BusyError, InvalidInputError
from nemodiff_trt.runtime.engine.admission_queue import AdmissionQueue
from nemodiff_trt.runtime.engine.grouping import PromptPart, prefill_runs
from nemodiff_trt.runtime.engine.options import EngineOptions
from nemodiff_trt.runtime.engine.prefix_store import PrefixStore, common_prefix
from nemodiff_trt.runtime.row_ranges import ranges


class TestAdmission:
    def test_first_come_first_served_within_a_priority(self) -> None:
        queue = AdmissionQueue(None, priority_s=10.0)
        for number, priority in enumerate((0, 1, 0, 1)):
            queue.push(number, priority, now_s=float(number))
        assert [queue.pop() for _ in range(5)] == [1, 3, 0, 2, None]

    def test_waiting_outweighs_priority(self) -> None:
        queue = AdmissionQueue(None, priority_s=10.0)
        queue.push(0, 0, now_s=0.0)
        queue.push(1, 1, now_s=9.0)
        queue.push(2, 1, now_s=11.0)
        assert [queue.pop() for _ in range(3)] == [1, 0, 2]

    def test_full_queue_refuses_and_keeps_what_it_has(self) -> None:
        queue = AdmissionQueue(2, priority_s=10.0)
        queue.push(0, 0, 0.0)
        queue.push(1, 0, 0.0)
        with pytest.raises(BusyError, match="busy: 2 requests are waiting, the limit"):
            queue.push(2, 5, 0.0)
        assert queue.discard(0)
        assert not queue.discard(0)
        queue.push(2, 0, 1.0)
        assert (len(queue), queue.pop(), queue.pop(), queue.pop()) == (2, 1, 2, None)


class TestGrouping:
    @given(st.sets(st.integers(0, 40)), st.integers(0, 3))
    def test_ranges_cover_every_slot_once(self, slots: set[int], max_idle: int) -> None:
        found = ranges(slots, max_idle)
        assert all(sum(begin <= slot < end for begin, end in found) == 1 for slot in slots)
        for begin, end in found:
            assert {begin, end - 1} <= slots
            inside = sorted(slot for slot in slots if begin <= slot < end)
            assert all(b - a <= max_idle + 1 for a, b in itertools.pairwise(inside))

    @given(st.lists(st.tuples(st.integers(0, 90), st.integers(1, 80)), max_size=8), st.integers(1, 32))
    def test_prefill_runs_stay_within_the_cache(self, sizes: list[tuple[int, int]], chunk: int) -> None:
        capacity = 100
        parts = [
            PromptPart(slot, cached, min(remaining, capacity - cached))
            for slot, (cached, remaining) in enumerate(sizes)
            if cached + remaining <= capacity
        ]
        runs = prefill_runs(parts, chunk, capacity)
        assert sorted(slot for begin, end, _ in runs for slot in range(begin, end)) == [part.slot for part in parts]
        for begin, end, step in runs:
            group = [part for part in parts if begin <= part.slot < end]
            assert step <= chunk
            assert all(part.num_cached + step <= capacity for part in group)
            assert step * len(group) <= 2 * sum(min(part.num_remaining, step) for part in group)


class TestPrefixes:
    @given(st.lists(st.integers(0, 2), max_size=8), st.lists(st.integers(0, 2), max_size=8))
    def test_common_prefix(self, first: list[int], second: list[int]) -> None:
        length = common_prefix(np.array(first, np.int64), np.array(second, np.int64))
        assert first[:length] == second[:length]
        assert length == min(len(first), len(second)) or first[length] != second[length]

    @given(st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=6), max_size=20), st.integers(0, 3))
    def test_rows_hold_what_the_store_says(self, texts: list[list[int]], num_rows: int) -> None:
        store, rows = PrefixStore(5, num_rows), {}
        for text in texts:
            kept = store.keep(np.array(text))
            if kept is not None:
                row, present = kept
                assert 5 <= row < 5 + num_rows
                assert rows.get(row, [])[:present] == text[:present]
                rows[row] = text
            if num_rows:
                assert any(held[: len(text)] == text for held in rows.values())
                match = store.match(np.array([*text, 7]))
                assert match is not None
                assert (rows[match[0]][: match[1]], match[1]) == (text, len(text))

    def test_least_recently_used_goes_and_growth_replaces(self) -> None:
        store = PrefixStore(0, 2)
        assert store.keep(np.array([1, 2])) == (0, 0)
        assert store.keep(np.array([3, 4])) == (1, 0)
        assert store.keep(np.array([1, 2, 5])) == (0, 2)
        assert store.keep(np.array([3, 4])) is None
        assert store.keep(np.array([1, 9])) == (0, 1)
        assert store.match(np.array([3, 4, 8])) == (1, 2)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_active", 0),
        ("max_waiting", -1),
        ("prefill_budget", 0),
        ("prefix_rows", -1),
        ("min_prefix", 0),
        ("priority_s", -1.0),
    ],
)
def test_options_out_of_range(field: str, value: float) -> None:
    with pytest.raises(InvalidInputError, match=f"{field}: got {value}"):
        EngineOptions(**{field: value})  # type: ignore[arg-type]

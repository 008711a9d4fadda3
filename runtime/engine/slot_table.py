"""Which row of the cache belongs to which request, so that requests that run together are neighbours.

An engine runs on a range of neighbouring rows, in place. Requests of one lane (same mode and block length, so mostly the same
role and step length) therefore lie side by side, lanes one after the other, no hole anywhere:

    slot    0    1    2    3    4    5    6
    lane   [ar   ar   ar] [ss16 ss16] [ss8]   free ...

Who joins goes to the end of its lane, who leaves is replaced by the last of its lane. Every lane behind then moves by one slot,
which takes one row: its first goes behind its last, or its last before its first. So a request that comes or goes moves at
most one row for every lane, however many requests there are.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import NamedTuple


class Move(NamedTuple):
    """The content of row `source` now belongs to row `target`. Moves are carried out in order."""

    request: int
    source: int
    target: int


class SlotTable:
    """Requests in slots 0 to n - 1, grouped by lane."""

    __slots__ = ("_lane_of", "_lanes", "_slots", "num_slots")

    def __init__(self, num_slots: int) -> None:
        self.num_slots = num_slots
        # In the order of their slots; none is empty.
        self._lanes: dict[Hashable, list[int]] = {}
        self._lane_of: dict[int, Hashable] = {}
        self._slots: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self._slots)

    @property
    def num_free(self) -> int:
        return self.num_slots - len(self._slots)

    @property
    def slots(self) -> dict[int, int]:
        """Slot of every request. A live view: do not change it."""
        return self._slots

    @property
    def occupants(self) -> list[int]:
        """Requests in the order of their slots."""
        return [request for members in self._lanes.values() for request in members]

    def insert(self, request: int, lane: Hashable) -> list[Move]:
        """Give `request` a slot, `slots[request]`; returns the moves that free it.

        Raises:
            ValueError: there is no free slot, or the request has one.
        """
        if not self.num_free or request in self._slots:
            raise ValueError(f"request {request} cannot get a slot: {len(self._slots)} of {self.num_slots} in use")
        members = self._lanes.setdefault(lane, [])
        moves = [self._shift_up(later) for later in reversed(self._behind(lane))]
        end = len(self._slots) - sum(map(len, self._behind(lane)))
        members.append(request)
        self._lane_of[request] = lane
        self._slots[request] = end
        return moves

    def remove(self, request: int) -> list[Move]:
        """Take the slot of `request`; returns the moves that close the gap.

        Raises:
            KeyError: it has none.
        """
        hole, lane = self._slots.pop(request), self._lane_of.pop(request)
        members = self._lanes[lane]
        place = members.index(request)
        last = members.pop()
        moves = []
        if last != request:
            members[place] = last
            moves.append(self._move(last, hole))
        behind = self._behind(lane)
        if not members:
            del self._lanes[lane]
        return moves + [self._shift_down(later) for later in behind]

    def _behind(self, lane: Hashable) -> list[list[int]]:
        lanes = list(self._lanes)
        return [self._lanes[later] for later in lanes[lanes.index(lane) + 1 :]]

    def _shift_up(self, members: list[int]) -> Move:
        first = members.pop(0)
        target = self._slots[members[-1]] + 1 if members else self._slots[first] + 1
        members.append(first)
        return self._move(first, target)

    def _shift_down(self, members: list[int]) -> Move:
        last = members.pop()
        target = self._slots[members[0]] - 1 if members else self._slots[last] - 1
        members.insert(0, last)
        return self._move(last, target)

    def _move(self, request: int, target: int) -> Move:
        move = Move(request, self._slots[request], target)
        self._slots[request] = target
        return move

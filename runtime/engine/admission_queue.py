"""Requests that wait for a slot, and the order in which they get one."""

from __future__ import annotations

import heapq
import itertools

from nemodiff_trt.errors import BusyError


class AdmissionQueue:
    """A bounded queue with priorities that nobody starves in.

    A request of priority p counts as if it had come p * `priority_s` seconds earlier. So its place is settled when it comes,
    and one that waits long enough is before any that come later, whatever their priority.
    """

    __slots__ = ("_heap", "_max_waiting", "_order", "_priority_s", "_waiting")

    def __init__(self, max_waiting: int | None, priority_s: float) -> None:
        self._max_waiting = max_waiting
        self._priority_s = priority_s
        self._heap: list[tuple[float, int, int]] = []
        self._waiting: set[int] = set()
        self._order = itertools.count()

    def __len__(self) -> int:
        return len(self._waiting)

    def __contains__(self, request: int) -> bool:
        return request in self._waiting

    def check_room(self) -> None:
        """Refuse one more request.

        Raises:
            BusyError: as many wait as may.
        """
        if self._max_waiting is not None and len(self._waiting) >= self._max_waiting:
            raise BusyError(f"busy: {len(self._waiting)} requests are waiting, the limit; try again later")

    def push(self, request: int, priority: int, now_s: float) -> None:
        """Let `request` wait. Equal requests are served in the order they came.

        Raises:
            BusyError: see `check_room`.
        """
        self.check_room()
        self._waiting.add(request)
        heapq.heappush(self._heap, (now_s - priority * self._priority_s, next(self._order), request))

    def pop(self) -> int | None:
        """The next request, None when nobody waits."""
        while self._heap:
            request = heapq.heappop(self._heap)[2]
            if request in self._waiting:
                self._waiting.remove(request)
                return request
        return None

    def discard(self, request: int) -> bool:
        """Forget a request that waits; returns whether it did."""
        if request not in self._waiting:
            return False
        # Its entry in the heap is skipped when it comes up.
        self._waiting.remove(request)
        return True

"""What was prepared for the step shapes that ran lately. Prompts come in every length, so there is no end of shapes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from typing import Generic, NamedTuple, TypeVar

from nemodiff_trt.vocabulary import Role

Prepared = TypeVar("Prepared")
# A decoding loop goes between a handful of shapes on each range of rows. What is bound to one takes some tens of kB.
MAX_STEPS = 256


class StepShape(NamedTuple):
    """`num_rows` rows of a cache from `first_row` on, `step` tokens each."""

    first_row: int
    num_rows: int
    role: Role
    step: int


class RecentSteps(Generic[Prepared]):
    """Keeps what was put in for the last `limit` shapes that were asked for."""

    __slots__ = ("_limit", "_prepared")

    def __init__(self, limit: int = MAX_STEPS) -> None:
        self._limit = limit
        self._prepared: OrderedDict[StepShape, Prepared] = OrderedDict()

    def __len__(self) -> int:
        return len(self._prepared)

    def __iter__(self) -> Iterator[StepShape]:
        return iter(self._prepared)

    def get(self, shape: StepShape) -> Prepared | None:
        """What was put in for `shape`, if it is still here; it counts as used now."""
        found = self._prepared.get(shape)
        if found is not None:
            self._prepared.move_to_end(shape)
        return found

    def put(self, shape: StepShape, prepared: Prepared) -> None:
        """Keep `prepared`. Beyond the limit, what was not used for longest goes."""
        self._prepared[shape] = prepared
        if len(self._prepared) > self._limit:
            self._prepared.popitem(last=False)

"""A cache that a session made, and what the session bound to the step shapes that ran on it."""

from __future__ import annotations

from typing import Any, Generic, Self, TypeVar

import numpy as np

from nemodiff_trt.errors import InvalidInputError
from nemodiff_trt.runtime.kv_cache import Buffer, KVCache
from nemodiff_trt.runtime.recent_steps import Prepared, RecentSteps, StepShape
from nemodiff_trt.vocabulary import Role


class BoundCache(KVCache[Buffer], Generic[Buffer, Prepared]):
    """Keys and values in memory of its session. Views share what is bound."""

    __slots__ = ("bindings", "owner")

    def __init__(
        self,
        owner: Any,
        keys: list[Buffer],
        values: list[Buffer],
        length: np.ndarray,
        capacity: int,
        bindings: RecentSteps[Prepared],
    ) -> None:
        """`owner` is the session; the rest as for `KVCache`."""
        super().__init__(keys, values, length, capacity)
        self.owner = owner
        self.bindings = bindings

    def shape_of(self, role: Role, step: int) -> StepShape:
        """What is bound for a step of `step` tokens on these rows is found under this."""
        return StepShape(self.first_row, self.batch_size, role, step)

    def _over(self, keys: list[Buffer], values: list[Buffer], length: np.ndarray) -> Self:
        return type(self)(self.owner, keys, values, length, self.capacity, self.bindings)


Cache = TypeVar("Cache", bound=BoundCache[Any, Any])


def own_cache(cache: KVCache[Any], kind: type[Cache], session: object) -> Cache:
    """`cache`, if `session` made it.

    Raises:
        InvalidInputError: it did not.
    """
    if not isinstance(cache, kind) or cache.owner is not session:
        raise InvalidInputError("cache", type(cache).__name__, "a cache made by this session")
    return cache

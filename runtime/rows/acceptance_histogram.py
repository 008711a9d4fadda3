"""How often a block of quadratic self-speculation was accepted up to which length: what pruned drafting learns from."""

from __future__ import annotations

import numpy as np

# Weight of a step against the one that follows it: texts change, and the last hundred steps tell more than the first.
_DECAY = 0.98


class AcceptanceHistogram:
    """Share of steps whose last accepted head was head m, for every m below a block length. May be shared by requests.

    It starts flat with one step's worth of evidence. What it holds changes how fast answers come, never what they are.
    """

    __slots__ = ("_weights",)

    def __init__(self, block_length: int) -> None:
        self._weights = np.full(block_length, 1 / block_length)

    def add(self, accepted: int) -> None:
        """Count a step that accepted the heads 0 to `accepted`."""
        self._weights *= _DECAY
        self._weights[accepted] += 1

    def most_likely(self, num: int, num_heads: int) -> tuple[int, ...]:
        """The `num` most likely last accepted heads of a step of `num_heads`, in order; all heads if there are no more.

        A longer acceptance than the heads allow ends at the last of them, so that one takes the weight of all behind it.
        """
        weights = self._weights[:num_heads].copy()
        weights[-1] += self._weights[num_heads:].sum()
        order = np.argsort(-weights, kind="stable")[:num]
        return tuple(sorted(order.tolist()))

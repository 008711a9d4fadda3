"""What a policy knows of one request, and what it chose for it."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from nemodiff_trt.runtime.planner.acceptance import SHARED_CYCLES, AcceptanceModel, SharedAcceptance, shares_of


@dataclass(frozen=True, slots=True)
class Choice:
    """`block_length` of self-speculation; 1 stands for autoregressive decoding."""

    block_length: int

    @property
    def drafts(self) -> bool:
        return self.block_length > 1


@dataclass(slots=True)
class PlannedRequest:
    """A request that leaves its mode to the policy.

    Attributes:
        shared: acceptance of all requests.
        choice: how to decode, None before the first decision.
        next_cycle: `choice`, or a probe instead of it.
        slot: of the cache.
        num_emitted: tokens of its answer so far.
        last_accepted: drafts that were right in the last cycle that drafted.
        own: acceptance of this request, from nothing, as far as `shared` took it in.
    """

    shared: SharedAcceptance
    choice: Choice | None = None
    next_cycle: Choice = Choice(1)
    slot: int = 0
    num_emitted: int = 0
    last_accepted: int = field(default=0, init=False)
    own: AcceptanceModel = field(init=False)

    def __post_init__(self) -> None:
        self.own = AcceptanceModel(self.shared.longest, prior_cycles=0.0)

    def observe(self, accepted: int) -> None:
        """Note the cycle that was decoded as `next_cycle` says: that many of its drafts were accepted."""
        self.last_accepted = accepted
        self.shared.note(self.own, self.num_emitted, self.next_cycle.block_length, accepted)

    def end(self, num_tokens: int) -> None:
        """The answer ended, with so many tokens."""
        self.shared.observe_answer(num_tokens)

    @property
    def num_cycles(self) -> float:
        """Cycles that `shares` came from, older ones less: a measure of how much it may err."""
        return SHARED_CYCLES + self.own.num_cycles

    def shares(self) -> np.ndarray:
        """Conditional acceptance by position, float64 [L - 1]: its own, and while that says little that of all requests."""
        self.shared.take_in()
        found: np.ndarray = shares_of([self.own], [self.shared.part(self.num_emitted)], self.shared)[0]
        return found

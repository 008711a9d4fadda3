"""The choice of mode and block length, made anew as load and texts change.

All candidates are lossless, so a choice never changes an answer, only its speed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from nemodiff_trt.runtime.planner.acceptance import AcceptanceModel
from nemodiff_trt.runtime.planner.latency_model import LatencyModel, Step
from nemodiff_trt.runtime.session import Session
from nemodiff_trt.vocabulary import Role

# A change has to promise so much more to be made: predictions err, and groups of rows should not fall apart for nothing.
MIN_GAIN = 0.04
# Cycles a choice stands for while the number of requests stays the same: choosing takes time as well.
DECIDE_CYCLES = 4
# Cycles after which an abandoned way is tried once more. Acceptance is only learned by drafting.
PROBE_CYCLES = 128


@dataclass(frozen=True, slots=True)
class Choice:
    """`block_length` of self-speculation; 1 stands for autoregressive decoding."""

    block_length: int

    @property
    def drafts(self) -> bool:
        return self.block_length > 1


class Policy:
    """Chooses for all requests of a loop that leave the choice to it.

    The requests of a loop share its engine runs, so what brings the most tokens in a second is also the fastest for each.
    """

    __slots__ = ("_batch", "_cycles", "_latency", "_min_gain", "acceptance", "block_lengths", "choice", "decisions")

    def __init__(self, latency: LatencyModel, block_lengths: Sequence[int], longest: int, min_gain: float = MIN_GAIN) -> None:
        """Start with the prior of acceptance.

        Args:
            latency: of the device.
            block_lengths: to choose from, beside autoregressive decoding.
            longest: block length of the engines.
            min_gain: share by which another choice has to be better.
        """
        self._latency = latency
        self._min_gain = min_gain
        self._batch = self._cycles = 0
        self.block_lengths = tuple(block_lengths)
        self.acceptance = AcceptanceModel(longest)
        self.choice = Choice(1)
        # How often every choice was made.
        self.decisions: dict[int, int] = {}

    @classmethod
    def for_session(cls, session: Session, latency: LatencyModel) -> Policy:
        """Between autoregressive decoding and blocks of powers of two, as far as the engines were built for both."""
        longest = session.limits.block_length
        drafts = {Role.DRAFT, Role.VERIFY} <= session.roles & latency.roles.keys()
        lengths = [1 << power for power in range(2, longest.bit_length()) if 1 << power <= longest] if drafts else []
        return cls(latency, lengths, longest)

    def speed(self, choice: Choice, batch: int, history: float) -> float:
        """Predicted tokens per millisecond of `batch` requests with `history` cached tokens each."""
        if not choice.drafts:
            return batch / self._latency.ms(Step(Role.DECODE, batch, 1, history))
        steps = (Step(role, batch, choice.block_length, history) for role in (Role.DRAFT, Role.VERIFY))
        return batch * self.acceptance.tokens(choice.block_length) / sum(map(self._latency.ms, steps))

    def decide(self, batch: int, history: float) -> Choice:
        """The choice for the next cycle of `batch` requests."""
        self._cycles += 1
        if batch != self._batch or self._cycles % DECIDE_CYCLES == 0:
            self._batch = batch
            self._choose(batch, history)
        decided = self.choice
        if not decided.drafts and self.block_lengths and self._cycles % PROBE_CYCLES == 0:
            decided = max(map(Choice, self.block_lengths), key=lambda choice: self.speed(choice, batch, history))
        self.decisions[decided.block_length] = self.decisions.get(decided.block_length, 0) + 1
        return decided

    def _choose(self, batch: int, history: float) -> None:
        speeds = {choice: self.speed(choice, batch, history) for choice in map(Choice, (1, *self.block_lengths))}
        best = max(speeds, key=speeds.__getitem__)
        if speeds[best] > (1 + self._min_gain) * speeds[self.choice]:
            self.choice = best

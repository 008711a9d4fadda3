"""Cycles that are decoded otherwise than seems best, because only running them teaches what they are worth."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from nemodiff_trt.runtime.planner.acceptance import expected_tokens
from nemodiff_trt.runtime.planner.cycle_costs import CycleCosts
from nemodiff_trt.runtime.planner.loop_times import KNOWN_RUNS
from nemodiff_trt.runtime.planner.planned_request import Choice, PlannedRequest

# Cycles after which one request drafts once more where drafting was given up. Acceptance is only learned by drafting. All do
# for a few cycles if it has so many times the tokens that would make it pay for all.
PROBE_CYCLES, PROMISING, PROMISING_LENGTH = 128, 1.5, 2
# How long cycles take in the loop is only learned by running them, too: every so many cycles all requests decode for a few in a
# way that did not run often, if its calibrated times promise so much of the best speed.
TRIAL_CYCLES, TRIAL_LENGTH, MIN_TRIAL_SPEED = 32, 4, 0.85


class Exploration:
    """Probes of one request's acceptance, and trials of how long the cycles of a candidate take."""

    __slots__ = ("_costs", "_cycles", "_left", "_probed", "_trial", "is_repeat")

    def __init__(self, costs: CycleCosts) -> None:
        """Start without anything under way."""
        self._costs = costs
        self._cycles = 0
        self._trial: Choice | None = None
        # Cycles of the trial that are still to come.
        self._left = 0
        # The request that drafted by itself in the last cycle, how, and tokens of a cycle that make it promising.
        self._probed: tuple[PlannedRequest, Choice, float] | None = None
        # Whether the cycle that was set last is like the one before: the first of its kind finds cold caches.
        self.is_repeat = False

    def steer(self, requests: Sequence[PlannedRequest], history: float, speeds: np.ndarray) -> bool:
        """Set the next cycle of some or all requests otherwise, if it is time; called once in a cycle.

        Args:
            requests: whose next cycle is as chosen; at least one.
            history: cached tokens, the mean of these requests.
            speeds: predicted ones if all requests decoded alike, by candidate; float64 [C].
        """
        self._cycles += 1
        self.is_repeat = False
        return self._probe(requests, history) or self._try_out(requests, speeds)

    def _probe(self, requests: Sequence[PlannedRequest], history: float) -> bool:
        """Let a request that does not draft do so for one cycle, by itself, if it is time."""
        number, off_turn = divmod(self._cycles, PROBE_CYCLES)
        request = requests[number % len(requests)]
        if off_turn or request.next_cycle.drafts:
            return False
        per_token = self._costs.table(1, history)[:, 1] / expected_tokens(request.shares(), self._costs.lengths)
        place = 1 + int(per_token[1:].argmin())
        request.next_cycle = self._costs.candidates[place]
        all_together = self._costs.table(len(requests), history)[:, len(requests)]
        self._probed = request, request.next_cycle, PROMISING * float(all_together[place] / all_together[0])
        return True

    def _try_out(self, requests: Sequence[PlannedRequest], speeds: np.ndarray) -> bool:
        """Let all requests decode for a few cycles in a way that a probe found promising, or that few cycles decoded in yet."""
        self.is_repeat = self._left > 0
        if not self._left:
            promising = self._promising()
            self._trial = promising or self._untried(requests, speeds)
            self._left = 0 if self._trial is None else TRIAL_LENGTH if promising is None else PROMISING_LENGTH
        if self._trial is None:
            return False
        self._left -= 1
        for request in requests:
            request.next_cycle = self._trial
        return True

    def _promising(self) -> Choice | None:
        """What the last cycle probed, if so many tokens of every request would pay."""
        if self._probed is None:
            return None
        (request, choice, needed), self._probed = self._probed, None
        return choice if request.last_accepted + 1 >= needed else None

    def _untried(self, requests: Sequence[PlannedRequest], speeds: np.ndarray) -> Choice | None:
        """If it is time, what may be the fastest and is known the least."""
        times = self._costs.loop_times
        if self._cycles % TRIAL_CYCLES or not times.has_runs:
            return None
        slots = [request.slot for request in requests]
        num_runs = times.num_runs(max(slots) - min(slots) + 1)
        worth_trying = (num_runs < KNOWN_RUNS) & (speeds >= MIN_TRIAL_SPEED * speeds.max())
        return self._costs.candidates[int(np.where(worth_trying, num_runs, np.inf).argmin())] if worth_trying.any() else None

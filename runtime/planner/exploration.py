"""Cycles that are decoded otherwise than seems best, because only running them teaches what they are worth."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from nemodiff_trt.runtime.planner.acceptance import expected_tokens
from nemodiff_trt.runtime.planner.cycle_costs import CycleCosts
from nemodiff_trt.runtime.planner.planned_request import Choice, PlannedRequest

# Cycles after which one request drafts once more where drafting was given up. Acceptance is only learned by drafting. All do
# for a few cycles if it has so many times the tokens that would make it pay for all.
PROBE_CYCLES, PROMISING, PROMISING_LENGTH = 128, 1.5, 2
# How long cycles take in the loop is only learned by running them, too: every so many cycles all requests decode for a few in a
# way that did not run often or lately, if it promises so much of the best speed.
TRIAL_CYCLES, TRIAL_LENGTH, MIN_TRIAL_SPEED = 32, 4, 0.7
# A cycle that drafts may take as long as ten that do not. So trials may cost this share of the time, by what is predicted:
# after a costly one it takes longer until the next.
TRIAL_SHARE = 0.01


class Exploration:
    """Probes of one request's acceptance, and trials of how long the cycles of a candidate take."""

    __slots__ = ("_costs", "_debt_ms", "_left", "_probed", "_trial", "is_repeat")

    def __init__(self, costs: CycleCosts) -> None:
        """Start without anything under way."""
        self._costs = costs
        self._trial: Choice | None = None
        # Cycles of the trial that are still to come.
        self._left = 0
        # What trials have cost beyond their share.
        self._debt_ms = 0.0
        # The request that drafted by itself in the last cycle, how, and tokens of a cycle that make it promising.
        self._probed: tuple[PlannedRequest, Choice, float] | None = None
        # Whether the cycle that was set last is like the one before: the first of its kind finds cold caches.
        self.is_repeat = False

    def steer(self, requests: Sequence[PlannedRequest], history: float, speeds: np.ndarray, cycle: int) -> bool:
        """Set the next cycle of some or all requests otherwise, if it is time.

        Args:
            requests: whose next cycle is as chosen; at least one.
            history: cached tokens, the mean of these requests.
            speeds: predicted ones if all requests decoded alike, by candidate; float64 [C].
            cycle: how many there were, this one included. Those that are left out are not a multiple of anything above.
        """
        self.is_repeat = False
        return self._probe(requests, history, cycle) or self._try_out(requests, history, speeds, cycle)

    def _probe(self, requests: Sequence[PlannedRequest], history: float, cycle: int) -> bool:
        """Let a request that does not draft do so for one cycle, by itself, if it is time."""
        number, off_turn = divmod(cycle, PROBE_CYCLES)
        request = requests[number % len(requests)]
        if off_turn or request.next_cycle.drafts:
            return False
        per_token = self._costs.table(1, history)[:, 1] / expected_tokens(request.shares(), self._costs.lengths)
        place = 1 + int(per_token[1:].argmin())
        request.next_cycle = self._costs.candidates[place]
        all_together = self._costs.table(len(requests), history)[:, len(requests)]
        self._probed = request, request.next_cycle, PROMISING * float(all_together[place] / all_together[0])
        return True

    def _try_out(self, requests: Sequence[PlannedRequest], history: float, speeds: np.ndarray, cycle: int) -> bool:
        """Let all requests decode for a few cycles in a way that is promising, or did not run often or lately."""
        self.is_repeat = self._left > 0
        if not self._left:
            promising = self._promising()
            self._trial = promising or (None if cycle % TRIAL_CYCLES else self._untried(requests, history, speeds))
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

    def _untried(self, requests: Sequence[PlannedRequest], history: float, speeds: np.ndarray) -> Choice | None:
        """What may be the fastest and is not known, or was long ago; the least known first."""
        times = self._costs.loop_times
        if not times.has_runs:
            return None
        slots = [request.slot for request in requests]
        batch = max(slots) - min(slots) + 1
        cycle_ms, best = self._costs.table(batch, history)[:, batch], int(speeds.argmax())
        self._debt_ms = max(0.0, self._debt_ms - TRIAL_SHARE * TRIAL_CYCLES * float(cycle_ms[best]))
        is_due = ~times.is_known(batch) & (speeds >= MIN_TRIAL_SPEED * speeds[best])
        if self._debt_ms or not is_due.any():
            return None
        place = int(np.where(is_due, times.num_runs(batch), np.inf).argmin())
        self._debt_ms = TRIAL_LENGTH * float(cycle_ms[place] * (1 - speeds[place] / speeds[best]))
        return self._costs.candidates[place]

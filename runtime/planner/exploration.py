"""Cycles that are decoded otherwise than seems best, because only running them teaches what they are worth."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from nemodiff_trt.runtime.planner.acceptance import expected_tokens
from nemodiff_trt.runtime.planner.cycle_costs import CycleCosts
from nemodiff_trt.runtime.planner.planned_request import Choice, PlannedRequest

# Exploring starts at multiples of so many cycles, if it may cost time again: a cycle that drafts may take as long as ten that
# do not. By what is predicted, exploring costs this share of the time; after something costly it takes longer until the next.
# What is learned early serves longest: of cycle n, `EARLY` / n may be spent as well.
TURN_CYCLES, EXPLORATION_SHARE, EARLY = 32, 0.004, 8.0
# Acceptance is only learned by drafting: where that was given up, one request drafts once more after so many cycles at least.
# All do for a few cycles if it has so many times the tokens that would make it pay for all.
PROBE_CYCLES, PROMISING, PROMISING_LENGTH = 128, 1.5, 2
# Where all draft, decoding without drafts is tried out after so many cycles at the latest, whatever is predicted of it: its
# cycles are short, and drafting must not stay where it became the slower one.
AR_CYCLES = 512
# How long cycles take in the loop is only learned by running them, too: all requests decode in another way for one of these
# numbers of cycles: a way that is close to the best takes more of them to tell apart, and costs less. What is learned serves
# for so many cycles of what takes longer, this way or the best.
TRIAL_LENGTHS, HORIZON = (3, 5, 8, 12, 20), 300.0
# Calibration beside other work may be wrong by half: what never was is tried once, if so much of the best speed is predicted.
WORTH_A_LOOK = 0.67
# Of the first cycle of its kind, because it finds cold caches: what it takes beyond those that follow.
COLD_SHARE = 0.15
# More than any trial promises for what it costs.
_DUE = 1e9


class Exploration:
    """Probes of one request's acceptance, and trials of how long the cycles of a candidate take."""

    __slots__ = (
        "_costs",
        "_debt_ms",
        "_is_over",
        "_is_probe_next",
        "_left",
        "_next_ar",
        "_next_probe",
        "_num_probes",
        "_probed",
        "_trial",
        "_turn",
    )

    def __init__(self, costs: CycleCosts) -> None:
        """Start without anything under way."""
        self._costs = costs
        # The cycle of the last turn, and what exploring has cost beyond its share until then.
        self._turn, self._debt_ms = 0, 0.0
        # The first cycle that may probe again. Probes and trials take turns, so neither waits for ever.
        self._next_probe, self._is_probe_next, self._num_probes = PROBE_CYCLES, True, 0
        # The first cycle at which autoregressive decoding has to be tried out.
        self._next_ar = AR_CYCLES
        self._trial: Choice | None = None
        # Cycles of the trial that are still to come.
        self._left = 0
        # Whether a trial ended since this was asked.
        self._is_over = False
        # The request that drafted by itself in the last cycle, how, and tokens of a cycle that make it promising.
        self._probed: tuple[PlannedRequest, Choice, float] | None = None

    def goes_on(self, requests: Sequence[PlannedRequest]) -> bool:
        """Set the next cycle of all requests as the last one was, while a trial is under way."""
        if not self._left:
            return False
        assert self._trial is not None, "set where a trial starts"
        self._left -= 1
        self._is_over = not self._left
        for request in requests:
            request.next_cycle = self._trial
        return True

    def take_result(self) -> bool:
        """Whether a trial ended since this was asked the last time."""
        is_over, self._is_over = self._is_over, False
        return is_over

    def starts(self, requests: Sequence[PlannedRequest], history: float, speeds: np.ndarray, cycle: int) -> bool:
        """Set the next cycle of some or all requests otherwise, if it is time.

        Args:
            requests: whose next cycle is as chosen; at least one.
            history: cached tokens, the mean of these requests.
            speeds: predicted ones if all requests decoded alike, by candidate; float64 [C].
            cycle: how many there were, this one included. Those that are left out are not a multiple of anything above.
        """
        if self._probed is not None:
            self._follow_up()
        elif cycle % TURN_CYCLES == 0:
            self._take_turn(requests, history, speeds, cycle)
        return self._probed is not None or self.goes_on(requests)

    def _take_turn(self, requests: Sequence[PlannedRequest], history: float, speeds: np.ndarray, cycle: int) -> None:
        """Start a probe or a trial, if one is due and the cycles since the last turn have paid for what exploring has cost."""
        cycle_ms = self._costs.table(len(requests), history)[speeds.argmax(), len(requests)]
        share = EXPLORATION_SHARE + EARLY / cycle
        self._debt_ms = max(0.0, self._debt_ms - share * (cycle - self._turn) * float(cycle_ms))
        self._turn = cycle
        if not any(request.next_cycle.drafts for request in requests):
            self._next_ar = cycle + AR_CYCLES
        if not self._debt_ms:
            first, second = self._start_probe, self._start_trial
            if not self._is_probe_next:
                first, second = second, first
            if not first(requests, history, speeds):
                second(requests, history, speeds)

    def _start_probe(self, requests: Sequence[PlannedRequest], history: float, speeds: np.ndarray) -> bool:
        """Let a request that does not draft do so for one cycle, by itself, if none did lately.

        The one in the first or the last slot: rows of the others stay together, in one run.
        """
        request = requests[-(self._num_probes % 2)]
        if self._turn < self._next_probe or request.next_cycle.drafts:
            return False
        tokens, num_others = expected_tokens(request.shares(), self._costs.lengths), len(requests) - 1
        cycle_ms = self._costs.table(len(requests), history)
        all_together = cycle_ms[:, -1]
        # As all would draft if it paid.
        place = 1 + int((all_together / tokens)[1:].argmin())
        request.next_cycle = self._costs.candidates[place]
        self._probed = request, request.next_cycle, PROMISING * float(all_together[place] / all_together[0])
        cost_ms = cycle_ms[0, num_others] + (1 + COLD_SHARE) * cycle_ms[place, 1] - (num_others + tokens[place]) / speeds.max()
        self._debt_ms = max(0.0, float(cost_ms))
        self._next_probe, self._is_probe_next = self._turn + PROBE_CYCLES, False
        self._num_probes += 1
        return True

    def _follow_up(self) -> None:
        """Let all requests decode like the one of the probe, if as many tokens of every one would pay."""
        assert self._probed is not None, "asked after a probe"
        (request, choice, needed), self._probed = self._probed, None
        if request.last_accepted + 1 >= needed:
            self._trial, self._left = choice, PROMISING_LENGTH

    def _start_trial(self, requests: Sequence[PlannedRequest], history: float, speeds: np.ndarray) -> bool:
        """Let all requests decode for a few cycles in the way that promises most for what it costs, if it promises more.

        What it promises is the knowledge gradient: how much faster the best is expected to be once the trial was seen.
        """
        times = self._costs.loop_times
        if not times.has_cycles:
            return False
        slots = [request.slot for request in requests]
        batch = max(slots) - min(slots) + 1
        cycle_ms = self._costs.table(batch, history)[:, batch]
        # What runs teaches by itself. It need not be what is predicted to be best: a change has to promise more than that.
        running = {request.next_cycle.block_length for request in requests}
        best = self._costs.places[running.pop()] if len(running) == 1 else int(speeds.argmax())
        lost = np.maximum(1 - speeds / speeds[best], 0.0)
        num_cycles = np.array(TRIAL_LENGTHS)[:, None]
        # The first cycle of its kind is not counted.
        changes = times.learnable(best, batch, num_cycles - 1)
        gains = expected_gains(np.broadcast_to(-np.log1p(-lost), changes.shape), changes)
        cost_ms = num_cycles * lost * cycle_ms + COLD_SHARE * (cycle_ms + cycle_ms[best])
        returns = HORIZON * np.maximum(cycle_ms, cycle_ms[best]) * gains / cost_ms
        is_open = times.untried(batch) & (1 - lost > WORTH_A_LOOK)
        # As if they promised up to twice what they cost, the likeliest most.
        returns[0, is_open] = np.maximum(returns[0], 2 - lost)[is_open]
        returns[:, best] = 0.0
        if best and self._turn >= self._next_ar:
            returns[:, 0] += _DUE
        length, place = (int(index) for index in np.unravel_index(returns.argmax(), returns.shape))
        if returns[length, place] <= 1:
            return False
        self._debt_ms = float(cost_ms[length, place])
        if place:
            # Teaches what a probe would.
            self._next_probe = self._turn + PROBE_CYCLES
        else:
            self._next_ar = self._turn + AR_CYCLES
        self._trial, self._left, self._is_probe_next = self._costs.candidates[place], TRIAL_LENGTHS[length], True
        return True


def expected_gains(gaps: np.ndarray, deviations: np.ndarray) -> np.ndarray:
    """By how much numbers that lie `gaps` below the best are expected to rise above it, if they change at random.

    Args:
        gaps: float64, none negative.
        deviations: standard deviations of normally distributed changes, float64 like `gaps`.
    """
    pairs = zip(gaps.ravel().tolist(), deviations.ravel().tolist(), strict=True)
    return np.array([_expected_gain(*pair) for pair in pairs]).reshape(gaps.shape)


def _expected_gain(gap: float, deviation: float) -> float:
    if deviation <= 0:
        return 0.0
    z = gap / deviation
    density = math.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)
    return deviation * (density - z * math.erfc(z / math.sqrt(2)) / 2)

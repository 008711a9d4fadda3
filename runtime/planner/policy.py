"""The choice of mode and block length, made anew as load and texts change.

All candidates are lossless, so a choice never changes an answer, only its speed.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from nemodiff_trt.runtime.planner.acceptance import SharedAcceptance, expected_tokens, shares_of
from nemodiff_trt.runtime.planner.cycle_costs import CycleCosts
from nemodiff_trt.runtime.planner.cycle_watch import CycleWatch
from nemodiff_trt.runtime.planner.exploration import TURN_CYCLES, Exploration
from nemodiff_trt.runtime.planner.group_speeds import best_split, runs_ms, speed_of, worth_of
from nemodiff_trt.runtime.planner.latency_model import LatencyModel
from nemodiff_trt.runtime.planner.margins import Margins
from nemodiff_trt.runtime.planner.planned_request import Choice, PlannedRequest
from nemodiff_trt.runtime.row_ranges import ranges
from nemodiff_trt.runtime.session import Session
from nemodiff_trt.vocabulary import Objective, Role

# Cycles a choice stands for: where something drafts, and where it does and the choice was as the one before; where nothing
# drafts and as many requests came or went as there are; and where nothing is new but step times. They end at multiples of so
# many; where nothing is new, exploring starts at others. Between, requests go on as they do: choosing takes time as well.
DRAFTING_CYCLES, CONFIRMED_CYCLES, ARRIVAL_CYCLES, QUIET_CYCLES = 8, 16, 8, 128
# Where more requests than these draft, a choice stands half as long: more come and go in a cycle, which also teaches more of
# acceptance and is long against the time that choosing takes.
FEW_REQUESTS = 4
# Histories grow while a choice stands: it is made for those that come after this share of what answers have left.
AHEAD = 0.25

_log = logging.getLogger(__name__)


class Policy:
    """Chooses for all requests of a loop that leave the choice to it.

    The requests of a loop share its engine runs. So they are sorted by how well their drafts do, and cut into two groups at
    most, each of which decodes in one way: the pair of ways and the cut of the best predicted speed are chosen.
    """

    __slots__ = (
        "_choice_cycle",
        "_chosen",
        "_costs",
        "_cycles",
        "_decisions",
        "_exploration",
        "_has_changed",
        "_is_confirmed",
        "_is_drafting",
        "_is_settled",
        "_margins",
        "_num_arrivals",
        "_num_chosen",
        "_num_cycles",
        "_num_uncounted",
        "_objective",
        "_progress",
        "_requests",
        "_runs",
        "_speeds",
        "_usual",
        "_watch",
        "acceptance",
        "block_lengths",
    )

    def __init__(
        self,
        latency: LatencyModel,
        block_lengths: Sequence[int],
        longest: int,
        max_batch: int,
        margins: Margins | None = None,
        objective: Objective | None = None,
        clock: Callable[[], float] | None = None,
    ) -> None:
        """Start with the prior of acceptance.

        Args:
            latency: of the device.
            block_lengths: to choose from, beside autoregressive decoding.
            longest: block length of the engines.
            max_batch: rows of their largest batch.
            margins: by which a choice has to be better than another; None for the usual ones.
            objective: None for latency while nobody waits for a slot, and throughput else: waiting is latency, too.
            clock: in seconds, to learn how long the cycles of the loop take; None to go by `latency` alone.
        """
        self._costs = CycleCosts(latency, block_lengths, max_batch)
        self._exploration = Exploration(self._costs) if block_lengths else None
        self._margins = margins or Margins()
        self._objective = objective
        self._watch = None if clock is None else CycleWatch(self._costs, clock)
        self._cycles = self._choice_cycle = 0
        self._requests: Sequence[PlannedRequest] = ()
        # Requests at the last choice, and those that came since.
        self._num_chosen = self._num_arrivals = 0
        # Whether these and those that left are as many as there are.
        self._has_changed = False
        self._chosen: list[Choice | None] = []
        # Part of its answer that the first request was at, at the last choice.
        self._progress = 0
        # How a request decodes that comes to an empty loop.
        self._usual: Choice | None = None
        # Whether the last choice was as the one before.
        self._is_confirmed = False
        # Whether the next cycles are as chosen, and then: whether any drafts, and how many requests have which block length.
        self._is_settled = self._is_drafting = False
        self._num_cycles: dict[int, int] = {}
        # Runs of the next cycles, by candidate and rows, if they are as chosen.
        self._runs: list[tuple[int, int]] = []
        # Predicted speeds at the last choice if all requests decoded alike, by candidate.
        self._speeds = np.zeros(len(self._costs.candidates))
        self.block_lengths = tuple(block_lengths)
        self.acceptance = SharedAcceptance(longest)
        # Cycles of requests by block length, without the latest that went on as the one before them.
        self._decisions: dict[int, int] = {}
        self._num_uncounted = 0

    @classmethod
    def for_session(
        cls,
        session: Session,
        latency: LatencyModel,
        objective: Objective | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> Policy:
        """Between autoregressive decoding and blocks of powers of two, as far as the engines were built for both."""
        limits = session.limits
        lengths = block_lengths_of(session, latency)
        return cls(latency, lengths, limits.block_length, limits.max_batch_size, objective=objective, clock=clock)

    def cycle_ms(self, choice: Choice, batch: int, history: float) -> float:
        """Predicted milliseconds of a cycle of `batch` requests with `history` cached tokens each."""
        return float(self._costs.table(batch, history)[self._costs.places[choice.block_length], batch])

    def end_cycle(self) -> None:
        """Take in how long the cycle took since it was decided or went on, with all that the loop does for it.

        Not called where other requests decoded along with those of the cycle.
        """
        if self._watch is not None:
            self._watch.end_cycle()

    def goes_on(self, requests: Sequence[PlannedRequest]) -> bool:
        """Let the next cycle of every request be as the last one was; False if `decide` has to be asked instead."""
        if self._is_drafting:
            beat = _standing(DRAFTING_CYCLES, requests)
        else:
            beat = ARRIVAL_CYCLES if self._has_changed else TURN_CYCLES
        if requests is not self._requests or not self._is_settled or self._cycles % beat == beat - 1:
            return False
        if self._has_grown(requests):
            return False
        self._cycles += 1
        self._num_uncounted += 1
        if self._watch is not None:
            self._watch.begin_cycle()
        return True

    def decide(self, requests: Sequence[PlannedRequest], history: float, num_waiting: int = 0) -> None:
        """Set the next cycle of every request.

        Args:
            requests: of the loop that leave the choice to this policy; at least one. The same sequence as before stands for the
                same requests in the same slots.
            history: cached tokens, the mean of these requests.
            num_waiting: requests that wait for a slot.
        """
        _add(self._decisions, self._num_cycles, self._num_uncounted)
        self._num_uncounted = 0
        self._cycles += 1
        is_same = requests is self._requests
        if is_same and self._exploration is not None and self._exploration.goes_on(requests):
            _add(self._decisions, _lengths_of(requests))
            if self._watch is not None:
                self._watch.begin_cycle()
            return
        is_repeat = is_same and self._is_settled
        if self._has_news(requests):
            if self._watch is not None:
                self._watch.take_in()
            num_emitted = sum(request.num_emitted for request in requests) / len(requests)
            ahead = AHEAD * self.acceptance.remaining(num_emitted)
            self._is_confirmed = not self._choose(requests, history + ahead, self._objective_of(num_waiting))
            self._usual, self._choice_cycle = requests[-1].choice, self._cycles
            self._num_chosen, self._num_arrivals, self._has_changed = len(requests), 0, False
            self._chosen = [request.choice for request in requests]
            self._progress = requests[0].num_emitted.bit_length()
            is_repeat = is_repeat and self._is_confirmed
        if not is_repeat:
            self._settle(requests)
        num_cycles, runs = self._num_cycles, self._runs
        if self._exploration is not None and self._exploration.starts(requests, history, self._speeds, self._cycles):
            num_cycles, runs, self._is_settled = _lengths_of(requests), self._runs_of(requests), False
        _add(self._decisions, num_cycles)
        if self._watch is not None:
            self._watch.follow(runs, history)

    @property
    def decisions(self) -> dict[int, int]:
        """Cycles of requests by block length."""
        found = dict(self._decisions)
        _add(found, self._num_cycles, self._num_uncounted)
        return found

    def _settle(self, requests: Sequence[PlannedRequest]) -> None:
        """Let the next cycles of all requests be as chosen."""
        for request in requests:
            assert request.choice is not None, "chosen before"
            request.next_cycle = request.choice
        self._num_cycles, self._runs, self._is_settled = _lengths_of(requests), self._runs_of(requests), True
        self._is_drafting = any(length > 1 for length in self._num_cycles)

    def _runs_of(self, requests: Sequence[PlannedRequest]) -> list[tuple[int, int]]:
        """Runs of the next cycle, by candidate and rows."""
        groups = _slots_by(requests, [self._costs.places[request.next_cycle.block_length] for request in requests])
        return [(place, end - begin) for place, slots in groups.items() for begin, end in ranges(slots)]

    def _has_news(self, requests: Sequence[PlannedRequest]) -> bool:
        """Whether to choose anew: from time to time drafts and step times are news, and other requests soon after they came.

        Until then those that came decode as most others do.
        """
        is_new = requests is not self._requests
        if is_new:
            fresh = [request for request in requests if request.choice is None]
            if fresh:
                self._follow_the_others(fresh, requests)
            self._requests, self._is_settled = requests, False
            self._num_arrivals += len(fresh)
            # Where one request follows another, short answers would leave no time but for choosing.
            is_as_before = len(requests) == self._num_chosen == 1 and self._cycles - self._choice_cycle < CONFIRMED_CYCLES
            if len(fresh) == len(requests) and not is_as_before:
                return True
        if self._exploration is not None and self._exploration.take_result():
            return True
        if self._has_grown(requests):
            return True
        num_departures = self._num_chosen + self._num_arrivals - len(requests)
        self._has_changed = self._num_arrivals + num_departures >= len(requests)
        drafting_cycles = _standing(CONFIRMED_CYCLES if self._is_confirmed else DRAFTING_CYCLES, requests)
        cycles = drafting_cycles if self._is_drafting else ARRIVAL_CYCLES if self._has_changed else QUIET_CYCLES
        return self._cycles % cycles == 0

    def _has_grown(self, requests: Sequence[PlannedRequest]) -> bool:
        """Whether drafts may do otherwise because answers are longer: whether the first became about twice as long."""
        return self._is_drafting and requests[0].num_emitted.bit_length() > self._progress

    def _follow_the_others(self, fresh: Sequence[PlannedRequest], requests: Sequence[PlannedRequest]) -> None:
        """Start as those decoded that left, or as most do. Without any choice before, they start with what is best."""
        choices = [request.choice for request in requests if request.choice is not None]
        missing = [choice for choice in self._chosen if choice is not None]
        for choice in choices:
            if choice in missing:
                missing.remove(choice)
        usual = max(choices, key=choices.count) if choices else self._usual
        for request in fresh:
            request.choice = missing.pop() if missing else usual

    def _objective_of(self, num_waiting: int) -> Objective:
        return self._objective or (Objective.THROUGHPUT if num_waiting else Objective.LATENCY)

    def _choose(self, requests: Sequence[PlannedRequest], history: float, objective: Objective) -> bool:
        """Choose what promises most, and tell whether that is another choice."""
        self.acceptance.take_in()
        parts = [self.acceptance.part(request.num_emitted) for request in requests]
        shares = shares_of([request.own for request in requests], parts, self.acceptance)
        tokens = self.acceptance.kept(expected_tokens(shares, self._costs.lengths))
        slots = [request.slot for request in requests]
        cost = self._costs.table(max(slots) - min(slots) + 1, history)
        worth = worth_of(tokens, objective)
        self._speeds = speed_of(worth.sum(axis=0), runs_ms(cost, [slots])[:, 0], len(requests), objective)
        place = int(self._speeds.argmax())
        if self._speeds[place] < (1 + self._margins.over_ar) * self._speeds[0]:
            place = 0
        candidates = self._costs.candidates
        speed, best = self._speeds[place], [candidates[place]] * len(requests)
        hardest_first = tokens[:, -1].argsort(kind="stable").tolist()
        if tokens[hardest_first[-1], -1] > (1 + self._margins.spread) * tokens[hardest_first[0], -1]:
            split_speed, places = best_split(hardest_first, worth, cost, slots, objective)
            if split_speed > (1 + self._margins.over_ar) * speed:
                speed, best = split_speed, [candidates[place] for place in places]
        # What drafts had to promise more than decoding without, and does not stay where it promises less.
        is_ar = not any(choice.drafts for choice in best)
        min_gain = 0.0 if is_ar else self._margins.of_a_change(sum(request.num_cycles for request in requests))
        if speed <= (1 + min_gain) * self._standing_speed(requests, best, worth, cost, objective):
            return False
        _log.debug("%d requests, %s: %s", len(requests), objective, best)
        for request, choice in zip(requests, best, strict=True):
            request.choice = choice
        return True

    def _standing_speed(
        self,
        requests: Sequence[PlannedRequest],
        best: Sequence[Choice],
        worth: np.ndarray,
        cost: np.ndarray,
        objective: Objective,
    ) -> float:
        """Predicted speed if all go on as they do. Those nothing was chosen for yet take what is best."""
        places: list[int] = []
        for place, request in enumerate(requests):
            if request.choice is None:
                request.choice = best[place]
            places.append(self._costs.places[request.choice.block_length])
        if len(set(places)) == 1:
            return float(self._speeds[places[0]])
        own_worth = worth[np.arange(len(places)), places].sum()
        groups = _slots_by(requests, places)
        group_ms = runs_ms(cost, list(groups.values()))
        ms = sum(float(group_ms[place, group]) for group, place in enumerate(groups))
        return float(speed_of(own_worth, ms, len(places), objective))


def block_lengths_of(session: Session, latency: LatencyModel) -> list[int]:
    """Powers of two, as far as the engines were built for them and draft at all."""
    longest = session.limits.block_length
    drafts = {Role.DRAFT, Role.VERIFY} <= session.roles & latency.roles.keys()
    return [1 << power for power in range(2, longest.bit_length()) if 1 << power <= longest] if drafts else []


def _standing(cycles: int, requests: Sequence[PlannedRequest]) -> int:
    """How many of these a choice stands for where such requests draft."""
    return cycles if len(requests) <= FEW_REQUESTS else cycles // 2


def _add(decisions: dict[int, int], num_requests: Mapping[int, int], num_cycles: int = 1) -> None:
    """Count cycles that had so many requests of each block length."""
    if num_cycles:
        for length, count in num_requests.items():
            decisions[length] = decisions.get(length, 0) + num_cycles * count


def _lengths_of(requests: Sequence[PlannedRequest]) -> dict[int, int]:
    """How many requests have which block length in their next cycle."""
    found: dict[int, int] = {}
    for request in requests:
        length = request.next_cycle.block_length
        found[length] = found.get(length, 0) + 1
    return found


def _slots_by(requests: Sequence[PlannedRequest], places: Sequence[int]) -> dict[int, list[int]]:
    """Slots of the requests by the candidate of each."""
    found: dict[int, list[int]] = {}
    for place, request in zip(places, requests, strict=True):
        found.setdefault(place, []).append(request.slot)
    return found

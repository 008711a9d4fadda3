"""The choice of mode and block length, made anew as load and texts change.

All candidates are lossless, so a choice never changes an answer, only its speed.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence

import numpy as np

from nemodiff_trt.runtime.planner.acceptance import AcceptanceModel, expected_tokens
from nemodiff_trt.runtime.planner.group_speeds import best_split, runs_ms, speed_of, worth_of
from nemodiff_trt.runtime.planner.latency_model import LatencyModel
from nemodiff_trt.runtime.planner.loop_times import KNOWN_RUNS, LoopTimes
from nemodiff_trt.runtime.planner.margins import Margins
from nemodiff_trt.runtime.planner.planned_request import Choice, PlannedRequest
from nemodiff_trt.runtime.row_ranges import ranges
from nemodiff_trt.runtime.session import Session
from nemodiff_trt.vocabulary import Objective, Role

# Cycles a choice stands for, because choosing takes time as well: where something drafted since; where nothing drafts and there
# are more requests or fewer; and where nothing is new but step times.
DRAFTING_CYCLES, ARRIVAL_CYCLES, QUIET_CYCLES = 8, 16, 64
# Cycles after which one request drafts once more where drafting was given up. Acceptance is only learned by drafting. All do
# for a few cycles if it has so many times the tokens that would make it pay for all.
PROBE_CYCLES, PROMISING, PROMISING_LENGTH = 128, 1.5, 2
# How long cycles take in the loop is only learned by running them, too: every so many cycles all requests decode for a few in a
# way that did not run often, if its calibrated times promise so much of the best speed.
TRIAL_CYCLES, TRIAL_LENGTH, MIN_TRIAL_SPEED = 32, 4, 0.85
# After so many cycles, what did not run since is a little less known.
AGE_CYCLES = 1024
# One in so many cycles without drafts tells how long it took, and all others do: watching takes time as well.
WATCH_CYCLES = 4
# Cycles take longer with more tokens in the cache, slowly: times are predicted for multiples of so many tokens.
_HISTORY_STEP = 32
_MAX_TABLES = 256

_log = logging.getLogger(__name__)


class Policy:
    """Chooses for all requests of a loop that leave the choice to it.

    The requests of a loop share its engine runs. So they are sorted by how well their drafts do, and cut into two groups at
    most, each of which decodes in one way: the pair of ways and the cut of the best predicted speed are chosen.
    """

    __slots__ = (
        "_begin_s",
        "_candidates",
        "_clock",
        "_cycles",
        "_is_settled",
        "_latency",
        "_lengths",
        "_loop_times",
        "_margins",
        "_max_batch",
        "_num_chosen",
        "_num_cycles",
        "_num_known",
        "_objective",
        "_places",
        "_probed",
        "_requests",
        "_speeds",
        "_tables",
        "_trial",
        "_trial_left",
        "_usual",
        "_watched",
        "acceptance",
        "block_lengths",
        "decisions",
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
        self._latency = latency
        self._margins = margins or Margins()
        self._objective = objective
        self._clock = clock
        self._cycles = self._num_known = 0
        self._requests: Sequence[PlannedRequest] = ()
        # Requests at the last choice.
        self._num_chosen = 0
        # How a request decodes that comes to an empty loop.
        self._usual: Choice | None = None
        # Whether the next cycles are as chosen, and how many requests of a cycle have which block length then.
        self._is_settled = False
        self._num_cycles: dict[int, int] = {}
        self._trial: Choice | None = None
        self._trial_left = 0
        # The request that drafts by itself in this cycle, how, and tokens of a cycle that make it promising.
        self._probed: tuple[PlannedRequest, Choice, float] | None = None
        # Runs of the cycle that is watched, by candidate and rows, and its calibrated milliseconds.
        self._watched: tuple[list[tuple[int, int]], float] | None = None
        self._begin_s = 0.0
        self._candidates = tuple(map(Choice, (1, *block_lengths)))
        # Predicted speeds at the last choice if all requests decoded alike, by candidate.
        self._speeds = np.zeros(len(self._candidates))
        self._lengths = np.array([choice.block_length for choice in self._candidates])
        self._places = {choice.block_length: place for place, choice in enumerate(self._candidates)}
        self._max_batch = max_batch
        self._tables: dict[int, np.ndarray] = {}
        self._loop_times = LoopTimes(len(self._candidates), max_batch)
        self.block_lengths = tuple(block_lengths)
        self.acceptance = AcceptanceModel(longest)
        # Cycles of requests by block length.
        self.decisions: dict[int, int] = {}

    @classmethod
    def for_session(
        cls,
        session: Session,
        latency: LatencyModel,
        objective: Objective | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> Policy:
        """Between autoregressive decoding and blocks of powers of two, as far as the engines were built for both."""
        longest = session.limits.block_length
        drafts = {Role.DRAFT, Role.VERIFY} <= session.roles & latency.roles.keys()
        lengths = [1 << power for power in range(2, longest.bit_length()) if 1 << power <= longest] if drafts else []
        return cls(latency, lengths, longest, session.limits.max_batch_size, objective=objective, clock=clock)

    def cycle_ms(self, choice: Choice, batch: int, history: float) -> float:
        """Predicted milliseconds of a cycle of `batch` requests with `history` cached tokens each."""
        return float(self._cost_table(batch, history)[self._places[choice.block_length], batch])

    def end_cycle(self) -> None:
        """Take in how long the cycle took since `decide`, with all that the loop does for it.

        Not called where other requests decoded along with those of the cycle.
        """
        if self._watched is not None and self._clock is not None:
            runs, calibrated_ms = self._watched
            ratio = 1e3 * (self._clock() - self._begin_s) / calibrated_ms
            for place, num_rows in runs if ratio > 0 else ():
                self._loop_times.observe(place, num_rows, ratio)

    def decide(self, requests: Sequence[PlannedRequest], history: float, num_waiting: int = 0) -> None:
        """Set the next cycle of every request.

        Args:
            requests: of the loop that leave the choice to this policy; at least one. The same sequence as before stands for the
                same requests in the same slots.
            history: cached tokens, the mean of these requests.
            num_waiting: requests that wait for a slot.
        """
        self._cycles += 1
        if self._cycles % AGE_CYCLES == 0:
            self._loop_times.age()
        if self._has_news(requests):
            self._choose(requests, history, self._objective_of(num_waiting))
            self._num_known, self._num_chosen, self._is_settled = self.acceptance.num_observed, len(requests), False
            self._usual = requests[-1].choice
        is_repeat = self._is_settled
        if not self._is_settled:
            for request in requests:
                assert request.choice is not None, "chosen above"
                request.next_cycle = request.choice
            self._num_cycles = _lengths_of(requests)
            self._is_settled = True
        num_cycles = self._num_cycles
        is_trial = False
        if self.block_lengths and (self._probe(requests, history) or (is_trial := self._try_out(requests))):
            num_cycles = _lengths_of(requests)
            is_repeat = is_trial and self._trial_left < TRIAL_LENGTH - 1
            self._is_settled = False
        # The first cycle of its kind finds cold caches, and takes up to twice as long as those that would follow.
        is_watched = is_repeat and (max(num_cycles) > 1 or is_trial or self._cycles % WATCH_CYCLES == WATCH_CYCLES - 1)
        self._watched = self._runs_of(requests, history) if is_watched and self._clock is not None else None
        for length, count in num_cycles.items():
            self.decisions[length] = self.decisions.get(length, 0) + count
        if self._watched is not None and self._clock is not None:
            self._begin_s = self._clock()

    def _runs_of(self, requests: Sequence[PlannedRequest], history: float) -> tuple[list[tuple[int, int]], float]:
        """Runs of the next cycle, by candidate and rows, and its calibrated milliseconds."""
        groups = _slots_by(requests, [self._places[request.next_cycle.block_length] for request in requests])
        runs = [(place, end - begin) for place, slots in groups.items() for begin, end in ranges(slots)]
        calibrated = self._calibrated_table(history)
        return runs, float(sum(calibrated[run] for run in runs))

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
            if len(fresh) == len(requests):
                return True
        has_drafted = self.acceptance.num_observed != self._num_known
        has_changed = len(requests) != self._num_chosen
        cycles = DRAFTING_CYCLES if has_drafted else ARRIVAL_CYCLES if has_changed else QUIET_CYCLES
        return self._cycles % cycles == 0

    def _follow_the_others(self, fresh: Sequence[PlannedRequest], requests: Sequence[PlannedRequest]) -> None:
        """Start as most requests decode, or did last. Without any before them, they start with what is best."""
        choices = [request.choice for request in requests if request.choice is not None]
        self._usual = max(choices, key=choices.count) if choices else self._usual
        for request in fresh:
            request.choice = self._usual

    def _objective_of(self, num_waiting: int) -> Objective:
        return self._objective or (Objective.THROUGHPUT if num_waiting else Objective.LATENCY)

    def _choose(self, requests: Sequence[PlannedRequest], history: float, objective: Objective) -> None:
        shares = np.stack([request.shares() for request in requests])
        tokens = self.acceptance.kept(expected_tokens(shares, self._lengths))
        slots = [request.slot for request in requests]
        cost = self._cost_table(max(slots) - min(slots) + 1, history)
        worth = worth_of(tokens, objective)
        self._speeds = speed_of(worth.sum(axis=0), runs_ms(cost, [slots])[:, 0], len(requests), objective)
        place = int(self._speeds.argmax())
        if self._speeds[place] < (1 + self._margins.over_ar) * self._speeds[0]:
            place = 0
        speed, best = self._speeds[place], [self._candidates[place]] * len(requests)
        if len(requests) > 1:
            hardest_first = np.argsort(tokens[:, -1], kind="stable").tolist()
            split_speed, places = best_split(hardest_first, worth, cost, slots, objective)
            if split_speed > (1 + self._margins.over_ar) * speed:
                speed, best = split_speed, [self._candidates[place] for place in places]
        min_gain = self._margins.of_a_change(sum(request.num_cycles for request in requests))
        if speed > (1 + min_gain) * self._standing_speed(requests, best, worth, cost, objective):
            _log.debug("%d requests, %s: %s", len(requests), objective, best)
            for request, choice in zip(requests, best, strict=True):
                request.choice = choice

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
            places.append(self._places[request.choice.block_length])
        own_worth = worth[np.arange(len(places)), places].sum()
        groups = _slots_by(requests, places)
        group_ms = runs_ms(cost, list(groups.values()))
        ms = sum(float(group_ms[place, group]) for group, place in enumerate(groups))
        return float(speed_of(own_worth, ms, len(places), objective))

    def _probe(self, requests: Sequence[PlannedRequest], history: float) -> bool:
        """Let a request that does not draft do so for one cycle, by itself, if it is time."""
        number, off_turn = divmod(self._cycles, PROBE_CYCLES)
        request = requests[number % len(requests)]
        if off_turn or request.next_cycle.drafts:
            return False
        per_token = self._cost_table(1, history)[:, 1] / expected_tokens(request.shares(), self._lengths)
        place = 1 + int(per_token[1:].argmin())
        request.next_cycle = self._candidates[place]
        all_together = self._cost_table(len(requests), history)[:, len(requests)]
        self._probed = request, self._candidates[place], PROMISING * float(all_together[place] / all_together[0])
        return True

    def _try_out(self, requests: Sequence[PlannedRequest]) -> bool:
        """Let all requests decode for a few cycles in a way that a probe found promising, or that few cycles decoded in yet."""
        if not self._trial_left:
            promising = self._promising()
            self._trial = promising or self._untried(requests)
            self._trial_left = 0 if self._trial is None else TRIAL_LENGTH if promising is None else PROMISING_LENGTH
        if self._trial is None:
            return False
        self._trial_left -= 1
        for request in requests:
            request.next_cycle = self._trial
        return True

    def _promising(self) -> Choice | None:
        """What the last cycle probed, if so many tokens of every request would pay."""
        if self._probed is None:
            return None
        (request, choice, needed), self._probed = self._probed, None
        return choice if request.last_accepted + 1 >= needed else None

    def _untried(self, requests: Sequence[PlannedRequest]) -> Choice | None:
        """If it is time, what may be the fastest and is known the least."""
        if self._cycles % TRIAL_CYCLES or not self._loop_times.has_runs:
            return None
        slots = [request.slot for request in requests]
        num_runs = self._loop_times.num_runs(max(slots) - min(slots) + 1)
        worth_trying = (num_runs < KNOWN_RUNS) & (self._speeds >= MIN_TRIAL_SPEED * self._speeds.max())
        return self._candidates[int(np.where(worth_trying, num_runs, np.inf).argmin())] if worth_trying.any() else None

    def _cost_table(self, batch: int, history: float) -> np.ndarray:
        """Milliseconds of a cycle by candidate and number of rows, as the loop runs now; float64 [C, batch + 1]."""
        found: np.ndarray = self._calibrated_table(history)[:, : batch + 1] * self._loop_times.factors(batch)
        return found

    def _calibrated_table(self, history: float) -> np.ndarray:
        """Milliseconds of the runs of a cycle by candidate and number of rows, float64 [C, max_batch + 1]."""
        bucket = round(history / _HISTORY_STEP)
        table = self._tables.get(bucket)
        if table is None:
            if len(self._tables) == _MAX_TABLES:
                self._tables.clear()
            table = self._tables[bucket] = np.zeros((len(self._candidates), self._max_batch + 1))
            batches = np.arange(1, self._max_batch + 1)
            for row, choice in zip(table[:, 1:], self._candidates, strict=True):
                for role in (Role.DRAFT, Role.VERIFY) if choice.drafts else (Role.DECODE,):
                    row += self._latency.row(role, choice.block_length, batches, bucket * _HISTORY_STEP)
        return table


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

"""Mode auto learns how long cycles take in its loop, and what that learning costs."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nemodiff_trt.runtime.planner import Choice, LatencyModel, PlannedRequest, Policy
from nemodiff_trt.runtime.planner.cycle_costs import CycleCosts
from nemodiff_trt.runtime.planner.cycle_watch import CycleWatch
from nemodiff_trt.runtime.planner.exploration import AR_CYCLES, EXPLORATION_SHARE, PROBE_CYCLES, expected_gains
from nemodiff_trt.runtime.planner.loop_times import LoopTimes
from nemodiff_trt.runtime.planner.policy import QUIET_CYCLES
from support.planning import device, lengths, planned

QUICK = settings(max_examples=50, deadline=None, derandomize=True)


def observe(times: LoopTimes, candidate: int, ratio: float, num_cycles: int) -> None:
    """Cycles of four rows and five milliseconds, with nothing between them and those before."""
    times.observe(candidate, 4, ratio, num_cycles, 5.0 * num_cycles)


class TestLoopTimes:
    def test_a_slower_device_is_no_slower_candidate(self) -> None:
        times = LoopTimes(2, 4)
        for candidate in (0, 1) * 10:
            observe(times, candidate, 1.0, 8)
        for _ in range(50):
            observe(times, 0, 1.5, 8)
        first, second = times.factors()[:, 4]
        assert first / second == pytest.approx(1.0, abs=0.1)
        # Only the other one tells which of the two it is.
        observe(times, 1, 1.0, 3)
        first, second = times.factors()[:, 4]
        assert first / second > 1.2

    def test_one_block_length_tells_of_the_others(self) -> None:
        times = LoopTimes(3, 4)
        for candidate, ratio in ((0, 1.0), (1, 1.3)) * 20:
            observe(times, candidate, ratio, 8)
        without, tried, other = times.factors()[:, 4]
        assert tried / without == pytest.approx(1.3, rel=0.05)
        assert other / without > 1.1

    def test_what_does_not_run_is_forgotten(self) -> None:
        times = LoopTimes(2, 4)
        assert not times.has_cycles
        np.testing.assert_array_equal(times.factors(), np.ones((2, 5)))
        for candidate in (0, 1) * 10:
            observe(times, candidate, 1.0, 8)
        assert (times.deviations()[:, times.bucket(4)] < 0.1).all()
        for _ in range(300):
            observe(times, 0, 1.0, 8)
        assert (times.deviations()[:, times.bucket(4)] < 0.1).tolist() == [True, False]

    def test_a_night_without_requests_changes_nothing(self) -> None:
        times = LoopTimes(2, 4)
        for candidate, ratio in ((0, 1.0), (1, 1.3)) * 20:
            observe(times, candidate, ratio, 8)
        first, second = times.factors()[:, 4]
        times.observe(0, 4, 1.1, 8, 1e8)
        later = times.factors()[:, 4]
        assert later[1] / later[0] == pytest.approx(second / first, rel=0.02)

    def test_an_interrupted_stretch_tells_little(self) -> None:
        times = LoopTimes(2, 4)
        for candidate in (0, 1) * 10:
            observe(times, candidate, 1.0, 8)
        observe(times, 1, 30.0, 8)
        first, second = times.factors()[:, 4]
        assert second / first == pytest.approx(1.0, abs=0.15)

    def test_what_is_known_has_little_to_be_learned(self) -> None:
        times = LoopTimes(2, 4)
        for candidate in (0, 1):
            observe(times, candidate, 1.0, 8)
        num_cycles = np.array([3])
        before = times.learnable(0, 4, num_cycles)
        assert before[0] == 0
        assert before[1] < times.learnable(0, 4, 4 * num_cycles)[1]
        for candidate in (0, 1) * 10:
            observe(times, candidate, 1.0, 8)
        assert times.learnable(0, 4, num_cycles)[1] < before[1] / 2

    @QUICK
    @given(st.floats(0.0, 1.0), st.floats(0.01, 0.5))
    def test_expected_gains_are_those_of_an_integral(self, gap: float, deviation: float) -> None:
        rises = np.linspace(gap, gap + 10 * deviation, 4001)
        density = np.exp(-((rises / deviation) ** 2) / 2) / (deviation * np.sqrt(2 * np.pi))
        wanted = np.trapezoid((rises - gap) * density, rises)
        found = expected_gains(np.array([gap, gap]), np.array([deviation, 0.0]))
        assert found[0] == pytest.approx(wanted, rel=1e-3, abs=1e-12)
        assert found[1] == 0


class TestCycleWatch:
    def test_cycles_with_a_few_rows_more_or_less_are_one_stretch(self) -> None:
        costs, now_s, seen, spans_ms = CycleCosts(device(1.0, 1.0), [4], 16), 0.0, [], []

        class Recorded(LoopTimes):
            def observe(self, candidate: int, batch: int, ratio: float, num_cycles: int, elapsed_ms: float) -> None:
                seen.append((candidate, self.bucket(batch), ratio, num_cycles))
                spans_ms.append(elapsed_ms)

        costs.loop_times = Recorded(2, 16)
        watch = CycleWatch(costs, lambda: now_s)
        for cycle in range(10):
            runs = [(0, 7 + cycle % 2)]
            watch.follow(runs, 100.0)
            watch.begin_cycle()
            now_s += 1.3e-3 * costs.calibrated_ms(runs, 100.0)
            watch.end_cycle()
            # Not begun, so not counted.
            now_s += 5.0
            watch.end_cycle()
        assert not seen
        watch.follow([(1, 8)], 100.0)
        watch.take_in()
        assert seen == [(0, 3, pytest.approx(1.3), 10)]
        # What was not counted lies between the first and the last cycle.
        took_ms = 1.3 * 5 * (costs.calibrated_ms([(0, 7)], 100.0) + costs.calibrated_ms([(0, 8)], 100.0))
        assert spans_ms == [pytest.approx(took_ms + 9 * 5000)]


class Loop:
    """A policy in a loop whose cycles take `ratios` times their calibrated time by block length, the first of a kind `cold`."""

    def __init__(self, latency: LatencyModel, cold: float = 1.0) -> None:
        self.now_s = 0.0
        self.cold = cold
        self.block_lengths: list[int] = []
        self.ratios = {1: 1.0, 4: 1.0, 8: 1.0}
        self.policy = Policy(latency, [4, 8], 8, 16, clock=lambda: self.now_s)
        self.calibrated = Policy(latency, [4, 8], 8, 16)

    def run(self, requests: list[PlannedRequest], num_cycles: int, slowness: float = 1.0) -> None:
        """Requests that decode alike, side by side."""
        for _ in range(num_cycles):
            if not self.policy.goes_on(requests):
                self.policy.decide(requests, 100.0)
            choice = requests[0].next_cycle
            ms = self.calibrated.cycle_ms(choice, len(requests), 100.0)
            ms *= 1.0 if self.block_lengths[-1:] == [choice.block_length] else self.cold
            self.block_lengths.append(choice.block_length)
            self.now_s += slowness * self.ratios[choice.block_length] * ms / 1e3
            self.policy.end_cycle()


class TestLearning:
    def test_follows_the_times_of_the_loop(self) -> None:
        loop = Loop(device(5.0, 0.02))
        requests = planned(loop.policy, 0, cycles=50)
        loop.run(requests, 40)
        assert lengths(requests) == [1]
        for _ in range(400):
            requests[0].next_cycle = Choice(8)
            requests[0].observe(2)
        requests[0].next_cycle = Choice(1)
        loop.run(requests, QUIET_CYCLES)
        assert lengths(requests) == [4]
        # A device that is slower in all it does is no reason to change; drafts that are, are.
        for draft_ratio, drafts in ((2.0, True), (8.0, False)):
            loop.ratios = {1: 2.0, 4: draft_ratio, 8: draft_ratio}
            loop.run(requests, 2 * AR_CYCLES + 100)
            assert requests[0].choice == (Choice(4) if drafts else Choice(1))
        # Nothing calls it back: what was calibrated is not what the loop is now.
        for _ in range(30):
            loop.run(requests, 100)
            assert requests[0].choice == Choice(1)

    def test_tries_out_what_was_calibrated_beside_other_work(self) -> None:
        # By calibrated times blocks of 8 get 0.72 of the tokens in a second that no drafts get, in the loop 1.43 of them.
        loop = Loop(device(5.0, 0.3))
        loop.ratios[8] = 0.5
        requests = planned(loop.policy, 1)
        loop.run(requests, 1000)
        assert requests[0].choice == Choice(8)

    def test_chooses_anew_where_an_answer_became_twice_as_long(self) -> None:
        policy = Policy(device(5.0, 0.02), [4, 8], 8, 16)
        requests = planned(policy, 7, 7)
        for num_emitted in (1, 2, 40):
            requests[0].num_emitted = num_emitted
            assert not policy.goes_on(requests)
            policy.decide(requests, 100.0)
            assert policy.goes_on(requests)
        # Who follows another has a short answer again, which is no reason.
        requests[0].num_emitted = 1
        assert policy.goes_on(requests)
        # Where nothing drafts, nothing is learned of drafts either.
        for request in requests:
            for _ in range(400):
                request.observe(0)
        for _ in range(QUIET_CYCLES):
            policy.decide(requests, 100.0)
        assert lengths(requests) == [1, 1]
        requests[0].num_emitted = 80
        assert policy.goes_on(requests)

    def test_cold_cycles_after_a_change_teach_nothing(self) -> None:
        loop = Loop(device(5.0, 0.02), cold=3.0)
        # Blocks of 4 are worth as much as none, so both are known soon.
        requests = planned(loop.policy, 1, cycles=50)
        loop.run(requests, 1000)
        assert {1, 4} <= set(loop.block_lengths)
        of_the_loop, calibrated = (
            policy.cycle_ms(Choice(4), 1, 100.0) / policy.cycle_ms(Choice(1), 1, 100.0)
            for policy in (loop.policy, Policy(device(5.0, 0.02), [4, 8], 8, 16))
        )
        # What is less certain is held to be a little slower.
        assert of_the_loop == pytest.approx(calibrated, rel=0.1)

    def test_one_interrupted_cycle_changes_nothing(self) -> None:
        loop = Loop(device(5.0, 0.02))
        requests = planned(loop.policy, 2, cycles=50)
        loop.run(requests, 100)
        for cycle in range(200):
            loop.run(requests, 1, 50.0 if cycle % 10 == 9 else 1.0)
            assert requests[0].choice == Choice(4)

    def test_tries_out_what_may_be_faster_than_its_calibrated_time(self) -> None:
        # By calibrated times blocks of 8 are worth less than blocks of 4, by those of the loop they are worth more.
        loop = Loop(device(5.0, 0.02))
        requests = planned(loop.policy, 2, cycles=50)
        loop.ratios = {1: 1.0, 4: 1.0, 8: 0.5}
        loop.run(requests, 100)
        assert lengths(requests) == [8]
        # What lost is not tried out again at once.
        before = loop.policy.decisions[8]
        loop.run(requests, 100)
        assert loop.policy.decisions[8] == before + 100

    def test_learns_while_requests_come_and_go_every_cycle(self) -> None:
        loop = Loop(device(5.0, 0.02))
        requests = planned(loop.policy, 2, 2, 2, 2, cycles=50)
        loop.ratios = {1: 1.0, 4: 1.0, 8: 0.5}
        for cycle in range(150):
            requests = list(requests)
            requests[cycle % 4] = PlannedRequest(loop.policy.acceptance, slot=cycle % 4)
            loop.run(requests, 1)
        assert lengths(requests) == [8] * 4

    @pytest.mark.parametrize(("compute", "num_trials"), [(1.0, 0), (0.6, 12)])
    def test_exploring_costs_a_small_share_of_the_time(self, compute: float, num_trials: int) -> None:
        # A cycle of 4 takes as long as 5 or 4.25 without drafts, and gives 4 tokens. The first is too slow to be tried out.
        loop = Loop(device(1.0, compute))
        requests = planned(loop.policy, 3, cycles=50)
        num_cycles = 128 * PROBE_CYCLES
        loop.run(requests, num_cycles)
        alone_ms, block_ms = (loop.calibrated.cycle_ms(Choice(length), 1, 100.0) for length in (1, 4))
        drafting = [len(list(cycles)) for length, cycles in itertools.groupby(loop.block_lengths) if length == 4]
        assert sum(drafting) * (block_ms / alone_ms - 4) / num_cycles < 1.1 * EXPLORATION_SHARE
        # Probes do not keep trials from their turn, nor the other way around.
        assert drafting.count(1) >= 12
        assert sum(length > 1 for length in drafting) >= num_trials

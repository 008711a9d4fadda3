"""Step times, acceptance and the choice between modes: what is learned is right, and a choice never costs an answer."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nemodiff_trt.contract import Limits
from nemodiff_trt.errors import BundleError, InvalidInputError
from nemodiff_trt.runtime.engine import TokenEngine
from nemodiff_trt.runtime.options import GenerationOptions
from nemodiff_trt.runtime.planner import (
    AcceptanceModel,
    Choice,
    LatencyModel,
    PlannedRequest,
    Policy,
    Step,
    StepTime,
)
from nemodiff_trt.runtime.planner.acceptance import (
    HALF_LIFE,
    OVERALL_CYCLES,
    SHARED_CYCLES,
    SharedAcceptance,
    expected_tokens,
    shares_of,
)
from nemodiff_trt.runtime.planner.calibrate import cycles_to_measure, held_out_error, measure_steps
from nemodiff_trt.runtime.planner.exploration import EARLY, PROBE_CYCLES
from nemodiff_trt.runtime.planner.latency_model import Coefficients
from nemodiff_trt.runtime.planner.margins import Margins
from nemodiff_trt.runtime.row_ranges import ranges
from nemodiff_trt.runtime.sequence import Sequence
from nemodiff_trt.runtime.session_eager import EagerSession
from nemodiff_trt.vocabulary import Mode, Objective, Role
from support.checkpoints import random_decoder, tiny_config
from support.decoding import NO_REUSE, Request, expected_ar
from support.planning import device, lengths, planned
from support.scripted_session import ScriptedSession, guess_from, random_text

LIMITS = Limits(max_batch_size=8, max_seq_len=48, block_length=32, prefill_chunk=16)
GRID = [Step(Role.VERIFY, b, s, h) for b in (1, 4, 16, 64) for s in (4, 8, 32) for h in (100.0, 1000.0)]
terms = st.sampled_from([0.0, 0.5, 2.0])


class TestLatencyModel:
    @settings(deadline=None, max_examples=60)
    @given(terms, terms, terms, terms, terms)
    def test_recovers_what_made_the_times(self, fixed: float, rise: float, compute: float, row: float, read: float) -> None:
        made = LatencyModel("d", False, {Role.VERIFY: Coefficients(0.1 + fixed, rise, compute / 100, row / 10, read / 10_000)})
        found = LatencyModel.fit("d", [StepTime(step, made.ms(step)) for step in GRID])
        for step in (Step(Role.VERIFY, 2, 16, 300.0), Step(Role.VERIFY, 128, 8, 50.0)):
            assert found.ms(step) == pytest.approx(made.ms(step), rel=1e-6)

    def test_noise_and_terms_that_would_be_negative(self) -> None:
        generator = np.random.default_rng(3)
        # Time falls with history in these measurements: noise, which must not become a rule.
        times = [
            StepTime(s, (5 + 0.01 * s.batch * s.step - 2e-5 * s.batch * s.history) * generator.uniform(0.95, 1.05))
            for s in GRID
        ]
        found = LatencyModel.fit("d", times)
        assert found.roles[Role.VERIFY].read == 0
        # Noise is 5 %, and history left out costs as much.
        assert held_out_error("d", times) < 0.1

    def test_file(self, tmp_path: Path) -> None:
        model, path = device(5.0, 0.01), tmp_path / "b.latency.json"
        with pytest.raises(BundleError, match=r"no step times .*nemodiff calibrate"):
            LatencyModel.read(path)
        path.write_bytes(model.to_bytes())
        assert LatencyModel.read(path) == model
        for broken in (b"", b"[]", model.to_bytes().replace(b"5.0", b"-5.0"), model.to_bytes().replace(b"draft", b"daft")):
            path.write_bytes(broken)
            with pytest.raises(BundleError, match="not a file of step times"):
                LatencyModel.read(path)

    def test_calibration_knows_the_measured_steps_and_what_lies_between(self, tmp_path: Path) -> None:
        # Sixteen rows take twice what the form allows for.
        def made(step: Step) -> float:
            return (1 + 0.01 * step.batch * step.step + 1e-4 * step.history) * (2.0 if step.batch == 16 else 1.0)

        model = LatencyModel.calibrate("d", [StepTime(step, made(step)) for step in GRID])
        for step in GRID:
            assert model.ms(step) == pytest.approx(made(step))
        low, middle, high = (model.ms(Step(Role.VERIFY, 4, 8, history)) for history in (100.0, 550.0, 1000.0))
        assert low < middle < high
        (tmp_path / "b.json").write_bytes(model.to_bytes())
        assert LatencyModel.read(tmp_path / "b.json") == model

    def test_unknown_role_and_too_few_steps(self) -> None:
        with pytest.raises(InvalidInputError, match="role: got 'prefill'"):
            device(1.0, 1.0).ms(Step(Role.PREFILL, 1, 1, 0.0))
        with pytest.raises(InvalidInputError, match="4 steps of role verify"):
            LatencyModel.fit("d", [StepTime(step, 1.0) for step in GRID[:4]])


class TestAcceptance:
    def test_learns_the_expected_tokens_from_cycles_of_any_length(self) -> None:
        generator, model = np.random.default_rng(0), AcceptanceModel(32, half_life=2000)
        share = 0.9
        for _ in range(4000):
            block = int(generator.choice([4, 8, 16]))
            accepted = min(int(generator.geometric(1 - share)) - 1, block - 1)
            model.observe(block, accepted)
        for block in (4, 8, 16):
            right = sum(share**index for index in range(block))
            assert model.tokens(block) == pytest.approx(right, rel=0.06)

    @settings(deadline=None, max_examples=60)
    @given(st.lists(st.tuples(st.integers(2, 8), st.integers(0, 7)), max_size=12), st.integers(0, 3000))
    def test_shares_are_those_of_counting_by_position(self, cycles: list[tuple[int, int]], num_before: int) -> None:
        half_life, overall = 3.0, AcceptanceModel(8)
        model, part = (AcceptanceModel(8, half_life, prior_cycles=0.0) for _ in range(2))
        tried, accepted = np.zeros(7), np.zeros(7)
        # So many that weights are brought back to 1 on the way.
        for block, right in [(8, 3)] * num_before + [(block, min(right, block - 1)) for block, right in cycles]:
            model.observe(block, right)
            tried, accepted = tried * 0.5 ** (1 / half_life), accepted * 0.5 ** (1 / half_life)
            tried[: min(right + 1, block - 1)] += 1
            accepted[:right] += 1
        assert model.num_cycles == pytest.approx(tried[0])
        for known, num_cycles in (([model, part], SHARED_CYCLES), ([part, model], OVERALL_CYCLES)):
            wanted = (accepted + num_cycles * overall.shares()) / (tried + num_cycles)
            np.testing.assert_allclose(shares_of([known[0]], [known[1]], overall)[0], wanted, rtol=1e-9)

    def test_tells_the_middle_of_answers_from_their_beginning(self) -> None:
        shared = SharedAcceptance(8)
        for num_emitted, accepted in [(2, 7), (40, 1)] * 100:
            request = PlannedRequest(shared, next_cycle=Choice(8), num_emitted=num_emitted)
            request.observe(accepted)
        begins, goes_on = (PlannedRequest(shared, num_emitted=num_emitted).shares()[1] for num_emitted in (3, 50))
        assert begins > 0.9
        assert goes_on < 0.6

    def test_what_was_not_tried_for_long_is_hoped_for_again(self) -> None:
        model = AcceptanceModel(8)
        for _ in range(100):
            model.observe(8, 4)
        for _ in range(200):
            model.observe(4, 3)
        # The fifth draft was always wrong, and still is held to be.
        assert model.shares()[4] < 0.1
        for _ in range(10_000):
            model.observe(4, 3)
        assert model.shares()[4] > 0.9

    def test_forgets_an_easy_text(self) -> None:
        model = AcceptanceModel(16)
        for _ in range(500):
            model.observe(16, 15)
        assert model.tokens(16) > 15
        for _ in range(int(6 * HALF_LIFE)):
            model.observe(16, 0)
        assert model.tokens(16) < 1.3


class TestPolicy:
    def test_long_blocks_while_tokens_are_free_and_none_when_they_cost(self) -> None:
        chosen = []
        for batch in (1, 8, 64, 2048):
            policy = Policy(device(5.0, 0.02), [4, 8, 16, 32], 32, 2048)
            requests = planned(policy, *[12] * min(batch, 8))
            # Rows in between are computed along, so far fewer requests than slots say how large a batch is.
            requests += [PlannedRequest(policy.acceptance, slot=slot) for slot in range(len(requests), batch)]
            policy.decide(requests, 500.0)
            chosen.append(lengths(requests)[0])
        assert chosen == sorted(chosen, reverse=True)
        assert (chosen[0], chosen[-1]) == (16, 1)

    @settings(deadline=None, max_examples=40)
    @given(st.lists(st.tuples(st.integers(0, 7), st.booleans()), min_size=50, max_size=150))
    def test_cycles_that_go_on_are_those_that_would_be_decided(self, cycles: list[tuple[int, bool]]) -> None:
        policies = [Policy(device(5.0, 0.1), [4, 8], 8, 4) for _ in range(2)]
        rows = [planned(policy, 1, 1, cycles=8) for policy in policies]
        for accepted, comes in cycles:
            for policy, requests in zip(policies, rows, strict=True):
                if policy is policies[0] or not policy.goes_on(requests):
                    policy.decide(requests, 100.0)
                for request in requests:
                    if request.next_cycle.drafts:
                        request.observe(min(accepted, request.next_cycle.block_length - 1))
            assert lengths(rows[0]) == lengths(rows[1])
            if comes and len(rows[0]) < 4:
                rows = [
                    [*own, PlannedRequest(policy.acceptance, slot=len(own))] for own, policy in zip(rows, policies, strict=True)
                ]
        assert policies[0].decisions == policies[1].decisions

    def test_drafting_has_to_be_clearly_better_than_ar(self) -> None:
        chosen = []
        for over_ar in (0.0, 10.0):
            policy = Policy(device(5.0, 0.02), [4, 8], 8, 16, Margins(over_ar=over_ar))
            requests = planned(policy, 7, 7)
            policy.decide(requests, 100.0)
            chosen.append(lengths(requests))
        assert chosen == [[8, 8], [1, 1]]

    @pytest.mark.parametrize("accepted", [3, 0])
    def test_small_gains_do_not_change_a_choice_but_drafts_that_no_longer_pay_are_left(self, accepted: int) -> None:
        policy = Policy(device(5.0, 0.02), [4, 8, 16], 32, 2048, Margins(change=1e9))
        requests = planned(policy, 12, 12)
        policy.decide(requests, 0.0)
        first = lengths(requests)
        assert 1 not in first
        for request in requests:
            for _ in range(400):
                request.observe(accepted)
        for _ in range(20):
            policy.decide(requests, 0.0)
        assert lengths(requests) == (first if accepted else [1, 1])

    def test_hard_texts_go_on_alone(self) -> None:
        # Tokens cost so much that only good drafts are worth them.
        policy = Policy(device(0.5, 0.2), [4, 8, 16, 32], 32, 2048)
        requests = planned(policy, 0, 31, 0, 31, slots=[0, 9, 1, 10])
        policy.decide(requests, 100.0, num_waiting=1)
        chosen = lengths(requests)
        assert chosen[0] == chosen[2] == 1
        assert chosen[1] == chosen[3] >= 8
        # Rows of the two kinds in turns are computed together anyway.
        mixed = planned(Policy(device(0.0, 0.2), [4, 8], 32, 2048), 0, 31, 0, 31)
        policy.decide(mixed, 100.0, num_waiting=1)
        assert len(set(lengths(mixed))) == 1

    def test_who_comes_takes_the_place_of_who_left(self) -> None:
        policy = Policy(device(0.5, 0.2), [4, 8, 16, 32], 32, 2048)
        requests = planned(policy, 0, 31, 0, 31, slots=[0, 9, 1, 10])
        policy.decide(requests, 100.0, num_waiting=1)
        chosen = lengths(requests)
        assert chosen[0] == 1 < chosen[1]
        for place in (1, 3, 2):
            requests = list(requests)
            requests[place] = PlannedRequest(policy.acceptance, slot=requests[place].slot)
            policy.decide(requests, 100.0, num_waiting=1)
            assert lengths(requests) == chosen

    def test_chooses_for_the_histories_that_answers_will_have(self) -> None:
        # Decoding reads the cache for every token; blocks cost as much whatever is in it.
        decode = Coefficients(1.0, 0.0, 0.0, 0.0, 0.01)
        block = Coefficients(5.0, 0.0, 0.0, 0.0, 0.0)
        latency = LatencyModel("made up", True, {Role.DECODE: decode, Role.DRAFT: block, Role.VERIFY: block})
        chosen = []
        for num_emitted in (0, 1000):
            policy = Policy(latency, [8], 8, 4)
            requests = planned(policy, 7)
            requests[0].end(1000)
            requests[0].num_emitted = num_emitted
            policy.decide(requests, 10.0)
            chosen += lengths(requests)
        assert chosen == [8, 1]

    @pytest.mark.parametrize("objective", Objective)
    def test_objectives(self, objective: Objective) -> None:
        """One easy text among seven hard ones: blocks for it alone make the most tokens, and every other answer slow."""
        policy = Policy(device(4.0, 0.2), [32], 32, 2048, objective=objective)
        requests = planned(policy, 31, *[0] * 7, slots=[12, *range(7)])
        policy.decide(requests, 100.0)
        assert lengths(requests) == [32 if objective is Objective.THROUGHPUT else 1, *[1] * 7]

    def test_latency_is_the_objective_until_somebody_waits(self) -> None:
        chosen = []
        for num_waiting in (0, 3):
            policy = Policy(device(4.0, 0.2), [32], 32, 2048)
            requests = planned(policy, 31, *[0] * 7, slots=[12, *range(7)])
            policy.decide(requests, 100.0, num_waiting)
            chosen.append(lengths(requests)[0])
        assert chosen == [1, 32]

    def test_short_answers_make_blocks_shorter(self) -> None:
        chosen = []
        for num_tokens in (1000, 2):
            policy = Policy(device(5.0, 0.1), [4, 8, 16, 32], 32, 2048)
            requests = planned(policy, 12)
            requests[0].end(num_tokens)
            policy.decide(requests, 100.0)
            chosen += lengths(requests)
        assert chosen == [16, 8]

    def test_tries_drafting_again_after_a_hard_text(self) -> None:
        policy = Policy(device(5.0, 0.02), [4, 8], 32, 2048)
        requests = planned(policy, 0, cycles=3000)
        chosen = []
        for _ in range(600):
            policy.decide(requests, 0.0)
            chosen += lengths(requests)
        # A probe takes two steps for one token, so it costs a cycle, which the next ones have paid for by then.
        assert EARLY * PROBE_CYCLES / len(chosen) > 1
        assert [cycle for cycle, length in enumerate(chosen, 1) if length == 4] == [*range(PROBE_CYCLES, 601, PROBE_CYCLES)]
        assert policy.decisions == {length: chosen.count(length) for length in (1, 4)}

    def test_notices_that_texts_became_easy(self) -> None:
        policy = Policy(device(5.0, 0.02), [4, 8], 32, 2048)
        planned(policy, 0, cycles=3000)
        requests = planned(policy, 0, 0, 0, cycles=0)
        drafting_since = None
        for cycle in range(2 * PROBE_CYCLES):
            policy.decide(requests, 0.0)
            for request in requests:
                if request.next_cycle.drafts:
                    request.observe(request.next_cycle.block_length - 1)
            if all(request.choice == Choice(8) for request in requests):
                drafting_since = drafting_since or cycle
        # The first probe is enough.
        assert drafting_since is not None
        assert drafting_since < PROBE_CYCLES + 20

    def test_other_requests_get_a_choice_of_their_own(self) -> None:
        # Drafts of most texts are right, those of these two are not.
        policy = Policy(device(5.0, 0.02), [4, 8], 8, 16)
        planned(policy, 7, cycles=400)
        requests = planned(policy, 0, 0, cycles=20)
        for _ in range(40):
            policy.decide(requests, 0.0)
        assert lengths(requests) == [1, 1]
        # They leave one after the other, so there is always one that the next can follow.
        for slot in range(2):
            requests = [
                PlannedRequest(policy.acceptance, slot=slot) if request.slot == slot else request for request in requests
            ]
            for _ in range(8):
                policy.decide(requests, 0.0)
        assert lengths(requests) == [8, 8]

    @settings(deadline=None, max_examples=60)
    @given(st.data())
    def test_no_cut_of_the_requests_is_better(self, data: st.DataObject) -> None:
        count = data.draw(st.integers(1, 5))
        latency = device(data.draw(terms), data.draw(st.sampled_from([0.01, 0.1, 1.0])))
        policy = Policy(latency, [4, 8], 8, 12, Margins(0.0, 0.0, 0.0, spread=-1.0))
        slots = data.draw(st.permutations(range(12)))[:count]
        requests = [PlannedRequest(policy.acceptance, slot=slot) for slot in slots]
        for request in requests:
            request.next_cycle = Choice(8)
            for accepted in data.draw(st.lists(st.integers(0, 7), max_size=6)):
                request.observe(accepted)
        policy.decide(requests, 0.0, num_waiting=1)

        def speed(chosen: tuple[int, ...]) -> float:
            tokens = [expected_tokens(r.shares(), np.array([c]))[0] for r, c in zip(requests, chosen, strict=True)]
            groups = {c: [r.slot for r, own in zip(requests, chosen, strict=True) if own == c] for c in chosen}
            runs = [(c, end - begin) for c, group in groups.items() for begin, end in ranges(group)]
            return float(sum(tokens) / sum(policy.cycle_ms(Choice(c), size, 0.0) for c, size in runs))

        hardness = np.argsort([expected_tokens(r.shares(), np.array([8]))[0] for r in requests], kind="stable").tolist()
        everything = []
        for first, second, cut in itertools.product((1, 4, 8), (1, 4, 8), range(count + 1)):
            chosen = dict(zip(hardness, [first] * cut + [second] * (count - cut), strict=True))
            everything.append(speed(tuple(chosen[place] for place in range(count))))
        assert speed(tuple(lengths(requests))) == pytest.approx(max(everything))


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10**6), accuracy=st.sampled_from([0.0, 0.7, 0.95, 1.0]), compute=st.sampled_from([1e-4, 0.05, 1.0]))
def test_auto_gives_the_tokens_of_ar_whatever_it_chooses(seed: int, accuracy: float, compute: float) -> None:
    text = random_text(seed)
    session = ScriptedSession(text, guess_from(text, seed, accuracy), LIMITS)
    # Probes are rare, so a policy that changes its mind all the time shows more.
    policy = Policy(device(1.0, compute), [4, 8, 16, 32], 32, 2048, Margins(-0.5, 0.0, -0.5))
    engine = TokenEngine(session, NO_REUSE, policy)
    requests = [Request((1, 30 + index), 4 + 5 * index, ignore_eos=True) for index in range(6)]
    sequences: list[Sequence] = []
    for index, request in enumerate(requests):
        sequences.append(request.start(session))
        engine.submit(sequences[-1], GenerationOptions(mode=Mode.AUTO))
        for _ in range(index):
            engine.admit()
            list(engine.run())
            engine.retire()
    while engine.has_work:
        engine.admit()
        list(engine.run())
        engine.retire()
    assert [sequence.tokens for sequence in sequences] == [expected_ar(text, request, 48) for request in requests]


def test_steps_of_a_session_are_measured() -> None:
    limits = Limits(max_batch_size=3, max_seq_len=24, block_length=8, prefill_chunk=8)
    session = EagerSession(random_decoder(tiny_config(hidden_size=16, head_dim=8), limits.cache_capacity), limits)
    steps = [step for _, cycle in cycles_to_measure(session) for step in cycle]
    shapes = {(step.role, step.batch, step.step) for step in steps}
    assert shapes >= {(Role.DECODE, 3, 1), (Role.DRAFT, 1, 4), (Role.VERIFY, 2, 8)}
    times = measure_steps(session, num_repeats=1)
    assert [time.step for time in times] == steps
    assert all(time.ms > 0 for time in times)
    assert Policy.for_session(session, LatencyModel.fit("d", times)).block_lengths == (4, 8)

"""The engine loop under any interleaving: requests come, are cancelled, time out and finish, and nothing is lost.

The invariants: every request's tokens are those it would have alone (a prefix of them when it was ended early), every event is
told once and in order, no slot leaks, nobody waits while a slot is free.
"""

from __future__ import annotations

from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from nemodiff_trt.contract import Limits
from nemodiff_trt.errors import BusyError
from nemodiff_trt.runtime.engine import EngineOptions, TokenEngine
from nemodiff_trt.runtime.options import GenerationOptions
from nemodiff_trt.runtime.sequence import FinishReason, Sequence
from nemodiff_trt.vocabulary import Mode
from support.decoding import NO_REUSE, Request
from support.scripted_session import ScriptedSession, guess_from, random_text

LIMITS = Limits(max_batch_size=4, max_seq_len=48, block_length=8, prefill_chunk=5, quadratic_block_length=4)
MAX_WAITING = 5

options = (
    st.just(GenerationOptions(mode=Mode.AR))
    | st.builds(
        GenerationOptions,
        mode=st.just(Mode.SELF_SPECULATION),
        block_length=st.sampled_from([2, 5, 8]),
        threshold=st.sampled_from([None, 0.5]),
    )
    | st.builds(
        GenerationOptions,
        mode=st.just(Mode.SELF_SPECULATION),
        block_length=st.sampled_from([5, 8]),
        num_leaves=st.sampled_from([1, 3]),
    )
    | st.builds(
        GenerationOptions,
        mode=st.just(Mode.QUADRATIC),
        block_length=st.sampled_from([2, 4]),
        draft_groups=st.sampled_from([None, 1, 2]),
    )
    | st.builds(GenerationOptions, mode=st.just(Mode.SELF_SPECULATION), block_length=st.just(5), num_leaves=st.integers(1, 3))
    | st.builds(
        GenerationOptions,
        mode=st.just(Mode.QUADRATIC),
        block_length=st.integers(2, 4),
        draft_groups=st.sampled_from([None, 1, 2]),
    )
    | st.builds(
        GenerationOptions,
        mode=st.just(Mode.DIFFUSION),
        block_length=st.sampled_from([2, 5, 8]),
        threshold=st.sampled_from([0.3, 0.9]),
    )
)
# Few different tokens, so that prompts begin alike.
prompts = st.lists(st.integers(20, 21), min_size=1, max_size=47).map(tuple)
requests = st.builds(
    Request,
    prompt=prompts,
    max_new_tokens=st.integers(1, 40),
    ignore_eos=st.booleans(),
    budget=st.none() | st.integers(0, 10),
)


class EngineMachine(RuleBasedStateMachine):
    @initialize(seed=st.integers(0, 1000), prefix_rows=st.integers(0, 2), budget=st.sampled_from([1, 7, 100]))
    def start(self, seed: int, prefix_rows: int, budget: int) -> None:
        text = random_text(seed)
        self.session = ScriptedSession(text, guess_from(text, seed, 0.7), LIMITS)
        self.engine = TokenEngine(
            self.session,
            EngineOptions(max_waiting=MAX_WAITING, prefix_rows=prefix_rows, min_prefix=3, prefill_budget=budget),
        )
        self.wanted: dict[int, tuple[Request, GenerationOptions]] = {}
        self.sequences: dict[int, Sequence] = {}
        self.told: dict[int, list[int]] = {}
        self.present: set[int] = set()
        self.clock = 0.0

    @rule(request=requests, options=options, priority=st.integers(-1, 2))
    def submit(self, request: Request, options: GenerationOptions, priority: int) -> None:
        self.clock += 1
        sequence = request.start(self.session)
        is_full = self.engine.num_waiting >= MAX_WAITING
        try:
            number = self.engine.submit(sequence, options, priority, self.clock)
        except BusyError:
            assert is_full
            return
        assert not is_full
        assert number not in self.sequences
        self.wanted[number], self.sequences[number], self.told[number] = (request, options), sequence, []
        self.present.add(number)

    @precondition(lambda self: self.present)
    @rule(data=st.data(), reason=st.sampled_from([FinishReason.CANCELLED, FinishReason.DEADLINE]))
    def end_early(self, data: st.DataObject, reason: FinishReason) -> None:
        self.engine.finish(data.draw(st.sampled_from(sorted(self.present))), reason)

    @rule(data=st.data())
    def step(self, data: st.DataObject) -> None:
        self.engine.admit()
        for run in self.engine.run():
            for number, report in run.rows.items():
                assert number in self.present
                self.told[number] += report.emitted
            # A consumer may have enough in the midst of a step, as with a stop string.
            if self.present and data.draw(st.integers(0, 9)) == 0:
                self.engine.finish(data.draw(st.sampled_from(sorted(self.present))), FinishReason.STOP)
        self.take_away(self.engine.retire())

    def take_away(self, numbers: list[int]) -> None:
        assert len(set(numbers)) == len(numbers)
        for number in numbers:
            self.present.remove(number)
            self.check(number)

    def check(self, number: int) -> None:
        """Compare a request that is done with the same request alone."""
        sequence, (request, options) = self.sequences[number], self.wanted[number]
        assert self.told[number] == sequence.tokens
        alone = self.alone(request, options)
        if sequence.finish_reason in (FinishReason.EOS, FinishReason.LENGTH):
            assert (sequence.tokens, sequence.finish_reason) == (alone.tokens, alone.finish_reason)
        else:
            assert sequence.tokens == alone.tokens[: len(sequence.tokens)]

    def alone(self, request: Request, options: GenerationOptions) -> Sequence:
        engine, sequence = TokenEngine(self.session, NO_REUSE), request.start(self.session)
        engine.submit(sequence, options)
        while engine.has_work:
            engine.admit()
            list(engine.run())
            engine.retire()
        return sequence

    @invariant()
    def books_balance(self) -> None:
        if not hasattr(self, "engine"):
            return
        engine = self.engine
        assert engine.num_active + engine.num_free == LIMITS.max_batch_size
        assert engine.has_work == bool(self.present)
        assert engine.num_active + engine.num_waiting <= len(self.present)

    def teardown(self) -> None:
        """Nobody starves: all that are left come to their end, in a bounded number of steps."""
        if not hasattr(self, "engine"):
            return
        for _ in range(2000):
            if not self.engine.has_work:
                break
            self.engine.admit()
            assert not (self.engine.num_free and self.engine.num_waiting)
            for run in self.engine.run():
                for number, report in run.rows.items():
                    self.told[number] += report.emitted
            self.take_away(self.engine.retire())
        assert not self.present
        assert self.engine.num_free == LIMITS.max_batch_size


def _settings(**changes: Any) -> settings:
    return settings(deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large], **changes)


TestEngine = EngineMachine.TestCase
# 250 runs of up to 50 rules: more than 10,000 of them.
TestEngine.settings = _settings(max_examples=250, stateful_step_count=50)

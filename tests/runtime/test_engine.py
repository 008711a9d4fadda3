"""`TriModeEngine`: requests with text that come at any time, end early, wait, and are counted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nemodiff_trt.contract import Limits
from nemodiff_trt.errors import BusyError, InvalidInputError
from nemodiff_trt.runtime.answer import GenerationResult
from nemodiff_trt.runtime.engine import EngineOptions, TriModeEngine
from nemodiff_trt.runtime.options import GenerationOptions
from nemodiff_trt.tokenizer import Tokenizer
from nemodiff_trt.vocabulary import Mode, Role
from support.checkpoints import write_tokenizer
from support.scripted_session import ScriptedSession, counting, guess_from

LIMITS = Limits(max_batch_size=2, max_seq_len=160, block_length=16, prefill_chunk=32, quadratic_block_length=4)
AR = GenerationOptions(mode=Mode.AR, max_new_tokens=6)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    directory: Path = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(directory)
    return Tokenizer.from_dir(directory)


class Clock:
    """Advances when told to."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def engine_of(tokenizer: Tokenizer, clock: Any = None, accuracy: float = 0.8, **options: Any) -> TriModeEngine:
    session = ScriptedSession(counting(110), guess_from(counting(110), 1, accuracy), LIMITS)
    return TriModeEngine(session, tokenizer, EngineOptions(**options), clock or Clock())


def results(engine: TriModeEngine, num_steps: int | None = None) -> dict[int, GenerationResult]:
    """Results of so many steps, or of all until there is no work."""
    found = {}
    while engine.has_work and num_steps != 0:
        num_steps = None if num_steps is None else num_steps - 1
        for reported in engine.step():
            if reported.event.result is not None:
                assert reported.request not in found
                found[reported.request] = reported.event.result
    return found


def test_requests_of_all_modes_side_by_side_equal_each_alone(tokenizer: Tokenizer) -> None:
    wishes = [
        ("a", AR),
        ("bcd", GenerationOptions(mode=Mode.SELF_SPECULATION, max_new_tokens=40, block_length=8)),
        ("e" * 50, GenerationOptions(mode=Mode.DIFFUSION, max_new_tokens=30, block_length=4)),
        ("f", GenerationOptions(mode=Mode.SELF_SPECULATION, max_new_tokens=9, stop=("zz",))),
    ]
    alone = []
    for prompt, options in wishes:
        engine = engine_of(tokenizer)
        engine.submit(prompt, options)
        alone += results(engine).values()
    together = engine_of(tokenizer)
    numbers = [together.submit(prompt, options) for prompt, options in wishes]
    found = results(together)
    assert [found[number].token_ids for number in numbers] == [result.token_ids for result in alone]
    assert [found[number].text for number in numbers] == [result.text for result in alone]


def test_a_request_that_comes_later_joins_those_that_run(tokenizer: Tokenizer) -> None:
    engine = engine_of(tokenizer)
    first = engine.submit("a", AR)
    engine.step()
    second = engine.submit("b", AR)
    assert engine.stats()["active"] == 1
    engine.step()
    assert engine.stats()["active"] == 2
    assert set(results(engine)) == {first, second}


def test_busy_is_said_before_anything_is_queued(tokenizer: Tokenizer) -> None:
    engine = engine_of(tokenizer, max_active=1, max_waiting=1)
    numbers = [engine.submit("a", AR)]
    engine.step()
    numbers.append(engine.submit("b", AR))
    for _ in range(3):
        with pytest.raises(BusyError, match="busy: 1 requests are waiting"):
            engine.submit("c", AR)
    assert sorted(results(engine)) == numbers
    engine.submit("d", AR)


def test_drain_answers_what_is_here_and_refuses_the_rest(tokenizer: Tokenizer) -> None:
    engine = engine_of(tokenizer)
    numbers = [engine.submit(prompt, AR) for prompt in "abc"]
    engine.drain()
    with pytest.raises(BusyError, match="shutting down"):
        engine.submit("d", AR)
    assert [(number, result.finish_reason) for number, result in sorted(results(engine).items())] == [
        (number, "length") for number in numbers
    ]


def test_cancelled_requests_end_with_what_they_have(tokenizer: Tokenizer) -> None:
    engine = engine_of(tokenizer)
    running, other, waiting = (engine.submit("a" * n, AR) for n in (1, 2, 3))
    whole = [110 + 1 + index for index in range(6)]
    results(engine, 2)
    engine.cancel(running)
    engine.cancel(waiting)
    found = results(engine)
    assert (found[running].finish_reason, found[waiting].finish_reason) == ("cancelled", "cancelled")
    assert list(found[running].token_ids) == whole[:3]
    assert (found[waiting].token_ids, found[waiting].text) == ((), "")
    assert len(found[other].token_ids) == 6
    engine.cancel(other)
    assert engine.stats()["free_slots"] == 2


def test_deadlines_count_from_submission(tokenizer: Tokenizer) -> None:
    clock = Clock()
    engine = engine_of(tokenizer, clock, max_active=1)
    running = engine.submit("a", AR, timeout_s=5.0)
    waiting = engine.submit("b", AR, timeout_s=2.0)
    untimed = engine.submit("c", AR)
    results(engine, 2)
    clock.now_s += 2.0
    found = results(engine, 1)
    assert {number: result.finish_reason for number, result in found.items()} == {waiting: "deadline"}
    clock.now_s += 3.0
    found = results(engine)
    assert (found[running].finish_reason, len(found[running].token_ids)) == ("deadline", 4)
    assert found[untimed].finish_reason == "length"


@pytest.mark.parametrize("timeout_s", [0, -1.0, float("inf"), float("nan")])
def test_timeout_out_of_range(tokenizer: Tokenizer, timeout_s: float) -> None:
    with pytest.raises(InvalidInputError, match="timeout_s"):
        engine_of(tokenizer).submit("a", AR, timeout_s=timeout_s)


def test_priority_goes_first(tokenizer: Tokenizer) -> None:
    engine = engine_of(tokenizer, max_active=1)
    low, high = engine.submit("a", AR), engine.submit("b", AR, priority=1)
    assert list(results(engine)) == [high, low]


def test_times_of_waiting_prefill_and_decoding(tokenizer: Tokenizer) -> None:
    clock = Clock()
    engine = engine_of(tokenizer, clock, max_active=1)
    engine.submit("a", GenerationOptions(mode=Mode.AR, max_new_tokens=1))
    second = engine.submit("b", AR)
    clock.now_s += 0.25
    engine.step()
    clock.now_s += 0.5
    results(engine, 1)
    for _ in range(4):
        clock.now_s += 0.125
        found = results(engine, 1)
    stats = found[second].stats
    assert (stats.queue_ms, stats.prefill_ms, stats.decode_ms) == (750.0, 0.0, 500.0)
    assert stats.tokens_per_second == 10.0


def test_chat_turns_compute_only_what_is_new(tokenizer: Tokenizer) -> None:
    engine, text = engine_of(tokenizer), "w" * 40
    lengths = []
    for _ in range(3):
        engine.submit(text, AR)
        (result,) = results(engine).values()
        lengths.append(len(tokenizer.encode(text)) - result.stats.reused_tokens)
        text = tokenizer.decode([*tokenizer.encode(text), *result.token_ids]) + "v" * 10
    # All but the last token of an answer are cached; what is decoded and encoded again has the same ids here.
    assert lengths == [40, 11, 11]


def test_prompts_that_begin_alike_are_computed_once(tokenizer: Tokenizer) -> None:
    engine = engine_of(tokenizer, prefix_rows=0)
    system = "s" * 100
    numbers = [engine.submit(system + tail, AR) for tail in "abcd"]
    found = results(engine)
    # Two slots: the second waits for the first, the later ones start beside one that has it.
    assert [found[number].stats.reused_tokens for number in numbers] == [0, 100, 100, 100]
    assert engine.stats()["reused_prompt_tokens"] == 300
    assert engine.stats()["prompt_tokens"] == 404


def test_long_prompts_do_not_hold_up_those_that_decode(tokenizer: Tokenizer) -> None:
    engine = engine_of(tokenizer, prefill_budget=1)
    short = engine.submit("a", GenerationOptions(mode=Mode.AR, max_new_tokens=20))
    engine.step()
    engine.submit("b" * 150, AR)
    for _ in range(5):
        roles = [reported.event.role for reported in engine.step() if reported.request == short]
        assert roles == [Role.DECODE]


def test_statistics(tokenizer: Tokenizer) -> None:
    engine = engine_of(tokenizer)
    engine.submit("a", GenerationOptions(mode=Mode.SELF_SPECULATION, max_new_tokens=40, block_length=8))
    engine.submit("b", AR)
    found = results(engine)
    stats = engine.stats()
    assert stats["tokens"] == sum(len(result.token_ids) for result in found.values()) == 46
    assert stats["finished"] == {"length": 2}
    assert stats["request_runs"]["decode"] == 5
    speculative = found[0].stats
    assert stats["request_runs"]["draft"] + stats["request_runs"]["verify"] == speculative.forward_passes
    assert sum(stats["accepted"].values()) == stats["request_runs"]["verify"]
    assert (stats["waiting"], stats["active"], stats["free_slots"]) == (0, 0, 2)


def test_more_slots_than_built_are_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(InvalidInputError, match="max_active: got 3, allowed: at most 2"):
        engine_of(tokenizer, max_active=3)


@pytest.mark.parametrize(
    ("options", "field"),
    [
        (GenerationOptions(block_length=8, num_leaves=2), "num_leaves"),
        (AR.changed(temperature=1.0), "temperature"),
        (AR.changed(logprobs=0), "logprobs"),
        (AR.changed(presence_penalty=0.5), "presence_penalty"),
    ],
)
def test_what_needs_logits_is_refused_without_them(tokenizer: Tokenizer, options: GenerationOptions, field: str) -> None:
    engine = engine_of(tokenizer)
    assert isinstance(engine.session, ScriptedSession)
    engine.session.keeps_logits = False
    with pytest.raises(InvalidInputError, match=f"{field}: got .*build the engines with --sampling"):
        engine.submit("a", options)
    assert not engine.has_work


def test_log_probabilities_follow_the_tokens(tokenizer: Tokenizer) -> None:
    for mode in (Mode.AR, Mode.SELF_SPECULATION, Mode.DIFFUSION, Mode.QUADRATIC):
        engine = engine_of(tokenizer)
        engine.submit("a", GenerationOptions(mode=mode, max_new_tokens=12, stop=("no",)).changed(logprobs=1))
        (result,) = results(engine).values()
        assert [entry.token for entry in result.logprobs] == list(result.token_ids)
        # Scores of the script: 2 for the token, 0 or 1 for others; it is the most probable one.
        assert all(entry.top == ((entry.token, entry.logprob),) for entry in result.logprobs)

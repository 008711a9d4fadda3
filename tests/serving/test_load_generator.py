"""The load generator: what it draws, and that its verdict finds every kind of wrong answer."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import statistics
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest
from in_process_client import InProcessClient
from load_generator import BrokenStreamError, Call, Flaw, Mix, Outcome, Piece, RefusedError, make_calls, run_closed, run_open
from load_report import Latency, expected_answers, judge, plot_load

from nemodiff_trt.contract import Limits
from nemodiff_trt.runtime.engine import AsyncTriModeEngine, EngineOptions, TriModeEngine
from nemodiff_trt.tokenizer import Tokenizer
from support.checkpoints import write_tokenizer
from support.scripted_session import Prefix, ScriptedSession, guess_from

LIMITS = Limits(max_batch_size=4, max_seq_len=2048, block_length=32, prefill_chunk=256)
MIX = Mix(cancelled=0.2, flawed=0.2, max_new_tokens=(2, 12))


def next_token(prefix: Prefix) -> int:
    return 130 + len(prefix) % 200


@pytest.fixture
def engine(tmp_path: Path) -> TriModeEngine:
    write_tokenizer(tmp_path)
    session = ScriptedSession(next_token, guess_from(next_token, 1, 0.8), LIMITS)
    return TriModeEngine(session, Tokenizer.from_dir(tmp_path), EngineOptions(prefix_rows=0))


def test_calls_are_reproducible_and_arrive_as_asked() -> None:
    calls = make_calls(MIX, 400, seed=5, rate=20.0)
    assert calls == make_calls(MIX, 400, seed=5, rate=20.0)
    assert calls != make_calls(MIX, 400, seed=6, rate=20.0)
    gaps = [after.arrival_s - before.arrival_s for before, after in itertools.pairwise(calls)]
    # Exponential gaps: mean and deviation are both 1 / rate; five standard errors either way.
    assert statistics.mean(gaps) == pytest.approx(0.05, rel=5 * 400**-0.5)
    assert statistics.pstdev(gaps) == pytest.approx(0.05, rel=5 * (2 / 400) ** 0.5)
    assert sum(call.flaw is not None for call in calls) == pytest.approx(80, abs=40)
    assert sum(call.cancel_after is not None for call in calls) == pytest.approx(80, abs=40)
    assert len({call.category for call in calls}) == 8
    assert {call.arrival_s for call in make_calls(MIX, 3, seed=5)} == {0.0}


def test_an_engine_answers_as_it_does_alone(engine: TriModeEngine) -> None:
    calls = make_calls(MIX, 60, seed=1)
    answers = expected_answers(engine, calls)

    async def main() -> list[Outcome]:
        async with AsyncTriModeEngine(engine) as serving:
            closed = await run_closed(InProcessClient(serving), calls, 8)
            opened = await run_open(InProcessClient(serving), calls)
            # A request that was left keeps its row until the next step: a row that stays taken runs into the time limit.
            await serving.drain(poll_s=0.001)
        return closed + opened

    outcomes = asyncio.run(asyncio.wait_for(main(), timeout=60))
    verdict = judge(outcomes, answers)
    assert not verdict.wrong
    assert len(verdict.refused) == 2 * sum(call.flaw is not None for call in calls)
    assert len(verdict.equal) + len(verdict.left) + len(verdict.refused) == 120
    assert verdict.left
    latency = Latency.of(outcomes)
    assert latency.answered == len(verdict.equal)
    assert latency.first_token_ms["p50"] <= latency.first_token_ms["p99"] <= latency.whole_ms["p99"]


class Scripted:
    """A client that gives what it is told to."""

    def __init__(self, pieces: list[Piece], error: Exception | None = None) -> None:
        self.pieces, self.error, self.was_closed = pieces, error, False

    async def stream(self, _call: Call) -> AsyncGenerator[Piece, None]:
        try:
            for piece in self.pieces:
                yield piece
            if self.error is not None:
                raise self.error
        except GeneratorExit:
            self.was_closed = True
            raise


def outcome_of(call: Call, pieces: list[Piece], error: Exception | None = None) -> Outcome:
    return asyncio.run(run_closed(Scripted(pieces, error), [call], 1))[0]


def test_verdict_finds_what_is_wrong(engine: TriModeEngine) -> None:
    call = dataclasses.replace(make_calls(Mix(), 1, seed=0)[0], options={"mode": "ar", "max_new_tokens": 6})
    answers = expected_answers(engine, [call])
    text, ids = answers[0].text, answers[0].token_ids
    flawed = dataclasses.replace(call, flaw=Flaw("mode"))
    left = dataclasses.replace(call, cancel_after=1)
    good = [Piece(text[:2], 2, ids[:2]), Piece(text[2:], len(ids) - 2, ids[2:], "length")]

    def is_wrong(outcome: Outcome) -> bool:
        return bool(judge([outcome], answers).wrong)

    assert not is_wrong(outcome_of(call, good))
    assert not is_wrong(outcome_of(left, good))
    assert not is_wrong(outcome_of(flawed, [], RefusedError("mode: got 'fast'")))
    assert not judge([outcome_of(flawed, [], RefusedError("kind: no"))], answers, {"mode": ("kind",)}).wrong
    assert is_wrong(outcome_of(flawed, [], RefusedError("something")))
    assert is_wrong(outcome_of(flawed, good))
    assert is_wrong(outcome_of(call, good[:1]))
    assert is_wrong(outcome_of(call, good[:1], BrokenStreamError("reset")))
    assert is_wrong(outcome_of(call, [], RefusedError("busy")))
    assert is_wrong(outcome_of(call, [good[0], dataclasses.replace(good[1], text="x")]))
    assert is_wrong(outcome_of(call, [good[0], dataclasses.replace(good[1], token_ids=(1, 2, 3, 4))]))
    assert is_wrong(outcome_of(left, [dataclasses.replace(good[0], text="zz"), good[1]]))


def test_leaving_closes_the_stream() -> None:
    call = dataclasses.replace(make_calls(Mix(), 1, seed=0)[0], cancel_after=2)
    client = Scripted([Piece("a", 1), Piece("b", 1), Piece("c", 1, finish_reason="length")])
    outcome = asyncio.run(run_closed(client, [call], 1))[0]
    assert outcome.was_left
    assert client.was_closed
    assert (outcome.text, outcome.num_tokens) == ("ab", 2)


def test_plot(tmp_path: Path) -> None:
    call = make_calls(Mix(), 1, seed=0)[0]
    outcome = outcome_of(call, [Piece("a", 1), Piece("b", 3, finish_reason="length")])
    levels = [Latency.of([outcome], rate) for rate in (1.0, 2.0)]
    plot_load(levels, tmp_path / "load.png", "load")
    assert (tmp_path / "load.png").read_bytes().startswith(b"\x89PNG")

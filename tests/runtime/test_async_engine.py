"""The engine on a thread of its own: many streams, cancellation, failures, and an end that leaves nobody waiting."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from pathlib import Path
from typing import Any
from unittest.mock import create_autospec

import numpy as np
import pytest

from nemodiff_trt.contract import Limits
from nemodiff_trt.errors import BusyError, EngineStoppedError, InvalidInputError
from nemodiff_trt.runtime.answer import GenerationResult, StreamEvent
from nemodiff_trt.runtime.engine import AsyncTriModeEngine, EngineOptions, EngineThread, TriModeEngine
from nemodiff_trt.runtime.options import GenerationOptions
from nemodiff_trt.tokenizer import Tokenizer
from nemodiff_trt.vocabulary import Mode
from support.checkpoints import write_tokenizer
from support.gated_session import GatedSession

LIMITS = Limits(max_batch_size=4, max_seq_len=160, block_length=16, prefill_chunk=32)
AR = GenerationOptions(mode=Mode.AR, max_new_tokens=20)
LONG = GenerationOptions(mode=Mode.AR, max_new_tokens=150)


@pytest.fixture
def session() -> GatedSession:
    return GatedSession(LIMITS)


@pytest.fixture
def engine(session: GatedSession, tmp_path: Path) -> TriModeEngine:
    write_tokenizer(tmp_path)
    return TriModeEngine(session, Tokenizer.from_dir(tmp_path), EngineOptions(max_waiting=500, prefix_rows=0))


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(work, timeout=30))


def test_many_streams_at_once(engine: TriModeEngine) -> None:
    async def one(serving: AsyncTriModeEngine, size: int) -> None:
        events = [event async for event in serving.stream("a" * size, AR)]
        result = events[-1].result
        assert result is not None
        assert "".join(event.text for event in events) == result.text
        assert list(result.token_ids) == [110 + size + index for index in range(20)]

    async def main() -> None:
        threads = threading.active_count()
        async with AsyncTriModeEngine(engine) as serving:
            await asyncio.gather(*(one(serving, 1 + size % 40) for size in range(100)))
            # The engine's, and the one that tokenises.
            assert threading.active_count() <= threads + 2
            assert (await serving.stats())["finished"] == {"length": 100}
        assert not serving.is_alive

    run(main())


def test_leaving_a_stream_cancels_the_request(engine: TriModeEngine, session: GatedSession) -> None:
    async def main() -> None:
        async with AsyncTriModeEngine(engine) as serving:
            # The engine stands still when the consumer leaves, however slow that is.
            session.close_gate_after(3)
            stream = serving.stream("a", LONG)
            async for event in stream:
                if len(event.token_ids):
                    break
            await stream.aclose()
            session.open_gate()
            session.close_gate_after(1)
            task = asyncio.create_task(serving.generate("b", LONG))
            await asyncio.sleep(0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            session.open_gate()
            while (stats := await serving.stats())["active"] + stats["waiting"]:
                await asyncio.sleep(0.001)
            assert stats["free_slots"] == 4
            assert set(stats["finished"]) <= {"cancelled"}

    run(main())


def test_errors_reach_their_own_caller_only(
    engine: TriModeEngine, session: GatedSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    submit = create_autospec(EngineThread.submit, side_effect=EngineThread.submit)
    monkeypatch.setattr(EngineThread, "submit", submit)

    async def main() -> None:
        async with AsyncTriModeEngine(engine) as serving:
            good = asyncio.create_task(serving.generate("a", AR))
            with pytest.raises(InvalidInputError, match="prompt"):
                await serving.generate("x" * 160, AR)
            assert len((await good).token_ids) == 20
            session.gate.clear()
            before = submit.call_count
            tasks = [asyncio.create_task(serving.generate("a", AR)) for _ in range(506)]
            while submit.call_count < before + 506:
                await asyncio.sleep(0)
            session.gate.set()
            outcomes = await asyncio.gather(*tasks, return_exceptions=True)
            refused = [outcome for outcome in outcomes if isinstance(outcome, BusyError)]
            answered = [outcome for outcome in outcomes if isinstance(outcome, GenerationResult)]
            assert len(refused) + len(answered) == 506
            assert 1 <= len(refused) <= 6

    run(main())


def test_drain_waits_for_all(engine: TriModeEngine) -> None:
    async def main() -> None:
        async with AsyncTriModeEngine(engine) as serving:
            tasks = [asyncio.create_task(serving.generate("a", AR)) for _ in range(9)]
            # They are here, if not yet tokenised.
            await asyncio.sleep(0)
            await serving.drain(poll_s=0.001)
            assert [len((await task).token_ids) for task in tasks] == [20] * 9
            with pytest.raises(BusyError):
                await serving.generate("b", AR)

    run(main())


def test_close_leaves_nobody_waiting(engine: TriModeEngine, session: GatedSession) -> None:
    async def main() -> None:
        serving = AsyncTriModeEngine(engine)
        session.gate.clear()
        tasks = [asyncio.create_task(serving.generate("a", LONG)) for _ in range(9)]
        await asyncio.sleep(0.02)
        session.gate.set()
        await serving.close()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(outcome, EngineStoppedError) for outcome in outcomes)
        with pytest.raises(EngineStoppedError, match="was stopped"):
            await serving.stats()

    run(main())


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_run_that_fails_ends_all_requests_with_the_reason(engine: TriModeEngine, session: GatedSession) -> None:
    async def main() -> None:
        serving = AsyncTriModeEngine(engine)
        tasks = [asyncio.create_task(serving.generate("a", LONG)) for _ in range(6)]
        await asyncio.sleep(0.005)
        session.is_broken = True
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        assert {type(outcome) for outcome in outcomes} <= {EngineStoppedError, GenerationResult}
        with pytest.raises(EngineStoppedError, match="the engine stopped: the device is gone"):
            await serving.generate("b", LONG)
        assert not serving.is_alive
        await serving.close()

    run(main())


def test_events_of_one_request_come_in_order(engine: TriModeEngine) -> None:
    async def main() -> None:
        async with AsyncTriModeEngine(engine) as serving:
            options = GenerationOptions(mode=Mode.SELF_SPECULATION, max_new_tokens=60, block_length=8)
            events: list[StreamEvent] = [event async for event in serving.stream("a", options)]
            tokens = [token for event in events for token in event.token_ids]
            assert np.array_equal(np.diff(tokens), np.ones(59))

    run(main())

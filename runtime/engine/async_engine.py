"""The engine loop for asyncio: what servers use."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, Self

from nemodiff_trt.errors import NemodiffError
from nemodiff_trt.runtime.answer import GenerationResult, StreamEvent
from nemodiff_trt.runtime.engine.engine_thread import EngineThread, Listener
from nemodiff_trt.runtime.engine.tri_mode_engine import TriModeEngine
from nemodiff_trt.runtime.options import GenerationOptions
from nemodiff_trt.runtime.prompts import Prompt

_Item = StreamEvent | NemodiffError


class AsyncTriModeEngine:
    """Runs an engine on a thread of its own and streams to any number of tasks.

    `async with AsyncTriModeEngine(engine) as serving:` stops the thread at the end.
    """

    def __init__(self, engine: TriModeEngine) -> None:
        """Start. The engine belongs to this object from now on."""
        self._thread = EngineThread(engine)
        # Long prompts take milliseconds: neither the engine nor the event loop should wait. One thread keeps the order.
        self._tokenizing = ThreadPoolExecutor(1, "nemodiff-tokenizer")

    @property
    def is_alive(self) -> bool:
        """Whether requests can be answered: false after `close`, or after an engine run failed."""
        return self._thread.is_alive

    async def stream(
        self,
        prompt: Prompt,
        options: GenerationOptions | None = None,
        *,
        priority: int = 0,
        timeout_s: float | None = None,
        index: int = 0,
    ) -> AsyncGenerator[StreamEvent, None]:
        """Answer one prompt, one event for each engine run; arguments and errors as for `TriModeEngine.submit`.

        Leaving the iterator, or cancelling its task, cancels the request.

        Raises:
            EngineStoppedError: the engine was closed, or a run failed.
        """
        loop = asyncio.get_running_loop()
        items: asyncio.Queue[_Item] = asyncio.Queue()

        def put(item: _Item) -> None:
            # A loop that is gone has nobody waiting.
            if not loop.is_closed():
                loop.call_soon_threadsafe(items.put_nowait, item)

        chosen = options or GenerationOptions()
        self._thread.check_alive()
        checked = await loop.run_in_executor(self._tokenizing, self._thread.check, prompt, chosen)
        submitted = self._thread.submit(
            checked, chosen, Listener(put, put), priority=priority, timeout_s=timeout_s, index=index
        )
        is_done = False
        try:
            await asyncio.wrap_future(submitted)
            while not is_done:
                item = await items.get()
                is_done = isinstance(item, NemodiffError) or item.result is not None
                if isinstance(item, NemodiffError):
                    raise item
                yield item
        finally:
            # The task may have been cancelled before the engine saw the request.
            if not is_done and not submitted.cancel():
                submitted.add_done_callback(self._cancel)

    async def generate(
        self,
        prompt: Prompt,
        options: GenerationOptions | None = None,
        *,
        priority: int = 0,
        timeout_s: float | None = None,
        index: int = 0,
    ) -> GenerationResult:
        """Answer one prompt; everything as for `stream`."""
        async for event in self.stream(prompt, options, priority=priority, timeout_s=timeout_s, index=index):
            if event.result is not None:
                return event.result
        raise AssertionError("the last event of a stream has a result")

    def _cancel(self, submitted: Future[int]) -> None:
        if not submitted.cancelled() and submitted.exception() is None:
            self._thread.cancel(submitted.result())

    async def stats(self) -> dict[str, Any]:
        """See `TriModeEngine.stats`."""
        return await asyncio.wrap_future(self._thread.stats())

    async def drain(self, poll_s: float = 0.05) -> None:
        """Refuse new requests and wait until all that are here are answered."""
        # Prompts that came before are tokenised by then.
        await asyncio.get_running_loop().run_in_executor(self._tokenizing, _nothing)
        await asyncio.wrap_future(self._thread.drain())
        while (stats := await self.stats())["waiting"] + stats["active"]:
            await asyncio.sleep(poll_s)

    async def close(self) -> None:
        """Stop at once. Streams that are not finished raise `EngineStoppedError`."""
        await asyncio.to_thread(self._thread.close)
        self._tokenizing.shutdown(wait=False)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


def _nothing() -> None:
    """The end of a queue."""

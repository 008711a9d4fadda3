"""Run what a request asks for: one stream of events for all of its answers, then bodies of them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any

from nemodiff_trt.errors import NemodiffError
from nemodiff_trt.runtime.answer import GenerationResult, StreamEvent
from nemodiff_trt.runtime.engine import AsyncTriModeEngine
from nemodiff_trt.runtime.server.choices import Choice, usage_of
from nemodiff_trt.runtime.server.errors import to_api_error
from nemodiff_trt.runtime.server.event_stream import DONE, event_of
from nemodiff_trt.runtime.server.formats import AnswerFormat
from nemodiff_trt.runtime.server.metrics import ServerMetrics
from nemodiff_trt.runtime.server.request_bodies import Job
from nemodiff_trt.runtime.server.token_texts import TokenTexts
from nemodiff_trt.runtime.server.traces import Trace
from nemodiff_trt.tokenizer import Tokenizer

_Item = tuple[int, StreamEvent] | NemodiffError


class Generation:
    """One request at work. Use `stream` or `whole`, once."""

    def __init__(
        self,
        engine: AsyncTriModeEngine,
        tokenizer: Tokenizer,
        job: Job,
        metrics: ServerMetrics,
        timeout_s: float | None = None,
    ) -> None:
        """After `timeout_s` seconds every answer ends with what it has."""
        self.results: dict[int, GenerationResult] = {}
        self._engine = engine
        self._job = job
        self._metrics = metrics
        self._timeout_s = timeout_s
        # Answers with a token.
        self._begun: set[int] = set()
        self._choices = [Choice(tokenizer, job.options.enable_thinking, job.return_token_ids) for _ in range(self.num_answers)]
        texts = TokenTexts(tokenizer)
        self._traces = [Trace(tokenizer, texts) for _ in range(self.num_answers if job.trace else 0)]
        self._last_s = [time.perf_counter()] * self.num_answers

    @property
    def num_answers(self) -> int:
        return self._job.n * len(self._job.prompts)

    async def whole(self, answers: AnswerFormat) -> dict[str, Any]:
        """Body of all answers.

        Raises:
            NemodiffError: an answer was refused or could not be finished; the others are cancelled.
        """
        async with aclosing(self._events()) as events:
            async for index, event in events:
                self._note(index, event)
        pieces = [self._choices[index].whole(self.results[index]) for index in range(self.num_answers)]
        return answers.whole(pieces) | {"usage": self._usage()}

    async def stream(self, answers: AnswerFormat, on_end: Callable[[], None]) -> AsyncGenerator[bytes, None]:
        """Server-sent events. An error after the first of them is told in the stream, which then ends.

        `on_end` is called when all answers are finished.

        Raises:
            NemodiffError: there is no first event.
        """
        has_begun = False
        try:
            async with aclosing(self._events()) as events:
                async for index, event in events:
                    self._note(index, event)
                    body = self._body(answers, index, event)
                    if body is not None:
                        has_begun = True
                        yield event_of(body)
        except NemodiffError as error:
            if not has_begun:
                raise
            yield event_of(to_api_error(error, self._job.names).to_dict())
            return
        on_end()
        if self._job.include_usage:
            yield event_of(answers.closing(self._usage()))
        yield DONE

    def _body(self, answers: AnswerFormat, index: int, event: StreamEvent) -> dict[str, Any] | None:
        """Body of what an engine run brought, None of nothing."""
        piece = self._choices[index].push(event)
        if piece.is_empty and not self._job.trace:
            return None
        body = answers.piece(index, piece)
        if self._job.trace:
            body["choices"][0]["trace"] = self._traces[index].push(event)
        return body | {"usage": None} if self._job.include_usage else body

    def _usage(self) -> dict[str, Any]:
        results = [self.results[index] for index in range(self.num_answers)]
        return usage_of(results, self._job.n, sum(choice.reasoning_tokens for choice in self._choices))

    def _note(self, index: int, event: StreamEvent) -> None:
        if event.token_ids:
            now_s = time.perf_counter()
            self._metrics.add_piece(now_s - self._last_s[index], is_first=index not in self._begun)
            self._begun.add(index)
            self._last_s[index] = now_s
        if event.result is not None:
            self.results[index] = event.result
            self._metrics.add_result(event.result)

    async def _events(self) -> AsyncGenerator[tuple[int, StreamEvent], None]:
        """Events of all answers, each with its index. The first error ends all of them."""
        if self.num_answers == 1:
            async with aclosing(self._answer(0)) as events:
                async for event in events:
                    yield 0, event
            return
        items: asyncio.Queue[_Item] = asyncio.Queue()

        async def pump(index: int) -> None:
            try:
                async with aclosing(self._answer(index)) as events:
                    async for event in events:
                        items.put_nowait((index, event))
            except NemodiffError as error:
                items.put_nowait(error)

        tasks = [asyncio.create_task(pump(index)) for index in range(self.num_answers)]
        num_open = len(tasks)
        try:
            while num_open:
                item = await items.get()
                if isinstance(item, NemodiffError):
                    raise item
                num_open -= item[1].result is not None
                yield item
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _answer(self, index: int) -> AsyncGenerator[StreamEvent, None]:
        prompt, place = divmod(index, self._job.n)
        return self._engine.stream(self._job.prompts[prompt], self._job.options, timeout_s=self._timeout_s, index=place)

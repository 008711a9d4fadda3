"""Answers requests of the OpenAI API."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from nemodiff_trt.errors import NemodiffError
from nemodiff_trt.runtime.answer import GenerationResult
from nemodiff_trt.runtime.engine import AsyncTriModeEngine
from nemodiff_trt.runtime.server.errors import ApiError, ClientLeftError, to_api_error
from nemodiff_trt.runtime.server.event_stream import EventStream, unless_client_leaves
from nemodiff_trt.runtime.server.formats import AnswerFormat, ChatFormat, CompletionFormat, Head
from nemodiff_trt.runtime.server.generation import Generation
from nemodiff_trt.runtime.server.metrics import ServerMetrics
from nemodiff_trt.runtime.server.options import ServerOptions
from nemodiff_trt.runtime.server.request_bodies import Job, read_chat, read_completion
from nemodiff_trt.runtime.server.served_model import ServedModel
from nemodiff_trt.runtime.server.token_texts import TokenTexts


class Handler:
    """Reads a body, runs the engine and writes the answer, until the client has it or leaves."""

    def __init__(
        self,
        engine: AsyncTriModeEngine,
        model: ServedModel,
        options: ServerOptions,
        metrics: ServerMetrics,
        log: logging.Logger,
    ) -> None:
        self._engine = engine
        self._model = model
        self._options = options
        self._metrics = metrics
        self._log = log
        self._texts = TokenTexts(model.tokenizer)
        self._defaults = model.defaults(options)

    async def chat(self, request: Request) -> Response:
        """POST /v1/chat/completions.

        Raises:
            ApiError: the request cannot be answered.
            ClientLeftError: nobody wants the answer any more.
        """
        job = read_chat(await self._read_body(request), self._defaults, self._options)
        if not self._model.tokenizer.has_chat_template:
            raise ApiError(400, "messages: the model has no chat template; use /v1/completions", param="messages")
        return await self._answer(request, job, ChatFormat(self._head("chatcmpl"), self._texts))

    async def completion(self, request: Request) -> Response:
        """POST /v1/completions; errors as for `chat`."""
        job = read_completion(await self._read_body(request), self._defaults, self._options)
        prompts = [self._prompt_text(job, index) for index in range(len(job.prompts) * job.n)] if job.echo else None
        return await self._answer(request, job, CompletionFormat(self._head("cmpl"), self._texts, prompts))

    async def _answer(self, request: Request, job: Job, answers: AnswerFormat) -> Response:
        generation = Generation(self._engine, self._model.tokenizer, job, self._metrics, self._options.timeout_s)
        try:
            if not job.stream:
                body = await unless_client_leaves(request.receive, generation.whole(answers))
                self._note(request, job, generation.results)
                return JSONResponse(body)
            pieces = generation.stream(answers, lambda: self._note(request, job, generation.results))
            first = await unless_client_leaves(request.receive, anext(pieces))
        except NemodiffError as error:
            raise to_api_error(error, job.names) from error
        return EventStream(first, pieces, self._options.write_timeout_s)

    async def _read_body(self, request: Request) -> bytes:
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        # Other kinds can be sent by any page a user has open, without asking first.
        if kind != "application/json":
            raise ApiError(415, f"content-type: got {kind!r}, allowed: application/json")
        limit, body = self._options.max_body_bytes, bytearray()
        try:
            async with asyncio.timeout(self._options.read_timeout_s):
                async for part in request.stream():
                    body += part
                    if len(body) > limit:
                        raise ApiError(413, f"the body is longer than {limit} bytes")
        except TimeoutError as error:
            raise ApiError(408, f"the body took longer than {self._options.read_timeout_s:g} seconds") from error
        except ClientDisconnect as error:
            raise ClientLeftError from error
        return bytes(body)

    def _head(self, kind: str) -> Head:
        return Head(f"{kind}-{secrets.token_hex(12)}", int(time.time()), self._options.model_name, self._model.fingerprint)

    def _prompt_text(self, job: Job, index: int) -> str:
        prompt = job.prompts[index // job.n]
        return prompt if isinstance(prompt, str) else self._model.tokenizer.decode(prompt, skip_special_tokens=False)  # type: ignore[arg-type]

    def _note(self, request: Request, job: Job, results: dict[int, GenerationResult]) -> None:
        """Tell the log of finished answers; what they say only if it was asked for."""
        listed = list(results.values())
        tokens = sum(result.stats.new_tokens for result in listed)
        reasons = ",".join(sorted({str(result.finish_reason) for result in listed}))
        prompt_tokens = sum(result.stats.prompt_tokens for result in listed[:: job.n])
        request.state.note = f"mode={job.options.mode} prompt_tokens={prompt_tokens} new_tokens={tokens} finish={reasons}"
        if self._options.log_prompts:
            for result in listed:
                self._log.info("%s prompt %r answer %r", request.state.request_id, result.prompt, result.text)

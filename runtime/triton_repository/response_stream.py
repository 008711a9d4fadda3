"""The responses of all requests, sent by one thread so that the engine's thread never waits for the server.

Events that come while the sender is busy with others are sent as one response. So a sender that falls behind catches up by
sending fewer and longer ones, and the engine is never held up by it.
"""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Protocol

import numpy as np

from nemodiff_trt.errors import BusyError, EngineStoppedError, InvalidInputError, NemodiffError
from nemodiff_trt.runtime.answer import GenerationResult, StreamEvent
from nemodiff_trt.runtime.sequence import FinishReason
from nemodiff_trt.runtime.triton_repository.fields import FINISH_REASON, LOGPROBS_OUTPUT, STATS, TEXT_OUTPUT, TOKEN_IDS


class Backend(Protocol):
    """What is needed of Triton's `triton_python_backend_utils`."""

    TRITONSERVER_RESPONSE_COMPLETE_FINAL: int
    Tensor: Any
    InferenceResponse: Any
    TritonError: Any
    MetricFamily: Any


class _LeftError(NemodiffError):
    """The client has gone; nobody reads this."""


class ResponseStream:
    """One request on its way: events to be sent, and where to.

    `add` and `fail` are called on the engine's thread, everything else on the sender's.
    """

    __slots__ = ("_error", "_events", "_is_streamed", "_sender", "_wake", "_wanted", "number", "prompt_name", "started_s")

    def __init__(
        self, sender: Any, wanted: frozenset[str], prompt_name: str, is_streamed: bool, wake: Callable[[ResponseStream], None]
    ) -> None:
        self.number: Future[int] | None = None
        self.prompt_name = prompt_name
        self.started_s = time.perf_counter()
        self._sender = sender
        self._wanted = wanted
        self._is_streamed = is_streamed
        self._wake = wake
        self._events: list[StreamEvent] = []
        self._error: NemodiffError | None = None

    def add(self, event: StreamEvent) -> None:
        """Take an event to send."""
        self._events.append(event)
        # A run that brought nothing to read is told with the next one that does.
        if event.result is not None or (self._is_streamed and (event.text or event.token_ids)):
            self._wake(self)

    def fail(self, error: NemodiffError) -> None:
        """End with an error, in place of what was added and not sent."""
        self._error = error
        self._wake(self)

    @property
    def was_left(self) -> bool:
        """Whether the client has gone; a question to the server."""
        return bool(self._sender.is_cancelled())

    def send(self, backend: Backend) -> StreamEvent | NemodiffError | None:
        """Send what there is as one response; returns what ended the stream, or None while it goes on."""
        # New events may be appended meanwhile, so only those seen here are taken.
        events = self._events[:]
        del self._events[: len(events)]
        if self._error is None and not events:
            return None
        end: StreamEvent | NemodiffError | None = self._error
        if self._error is not None:
            self._send_error(backend, self._error)
        else:
            result = events[-1].result
            end = None if result is None else events[-1]
            if result is not None and result.finish_reason is FinishReason.CANCELLED:
                self._send_error(backend, _LeftError("the request was cancelled"))
            else:
                response = backend.InferenceResponse(self._tensors(backend, events))
                self._sender.send(response, flags=backend.TRITONSERVER_RESPONSE_COMPLETE_FINAL if end else 0)
        if end is not None:
            # The server keeps a model loaded for as long as a sender of it exists. The future of the request and this object
            # know each other, so without this the sender would stay until the garbage collector comes by.
            self._sender = None
        return end

    def _tensors(self, backend: Backend, events: list[StreamEvent]) -> list[Any]:
        result = events[-1].result
        texts: dict[str, str] = {}
        if TEXT_OUTPUT in self._wanted:
            texts[TEXT_OUTPUT] = "".join(event.text for event in events)
        if FINISH_REASON in self._wanted:
            texts[FINISH_REASON] = "" if result is None else str(result.finish_reason)
        if STATS in self._wanted:
            texts[STATS] = json.dumps(_stats(events, result))
        if LOGPROBS_OUTPUT in self._wanted and any(event.step.logprobs for event in events):
            texts[LOGPROBS_OUTPUT] = json.dumps(_logprobs(events))
        tensors = [backend.Tensor(name, np.array([text.encode()], np.object_)) for name, text in texts.items()]
        if TOKEN_IDS in self._wanted:
            ids = [token for event in events for token in event.token_ids]
            tensors.append(backend.Tensor(TOKEN_IDS, np.array(ids, np.int64)))
        return tensors

    def _send_error(self, backend: Backend, error: NemodiffError) -> None:
        kinds = backend.TritonError
        code = kinds.INTERNAL
        message = str(error)
        if isinstance(error, InvalidInputError):
            code = kinds.INVALID_ARG
            # The engine knows one prompt, the request knows by which input it came.
            message = message.replace("prompt:", f"{self.prompt_name}:", 1) if message.startswith("prompt:") else message
        elif isinstance(error, (BusyError, EngineStoppedError)):
            code = kinds.UNAVAILABLE
        elif isinstance(error, _LeftError):
            code = kinds.CANCELLED
        response = backend.InferenceResponse(output_tensors=[], error=kinds(message, code))
        self._sender.send(response, flags=backend.TRITONSERVER_RESPONSE_COMPLETE_FINAL)


def _stats(events: list[StreamEvent], result: GenerationResult | None) -> dict[str, Any]:
    """Of these events: engine runs by role, drafted and accepted tokens; and of the whole answer once it is finished."""
    # A verify run reports its drafts again: they count where they are checked.
    checked = [event.step for event in events if event.step.drafted and event.role != "draft"]
    stats: dict[str, Any] = {
        "runs": dict(Counter(str(event.role) for event in events)),
        "drafted": sum(len(step.drafted) for step in checked),
        "accepted": sum(step.accepted for step in checked),
    }
    if result is not None:
        whole = result.to_dict()
        stats["answer"] = whole["stats"] | {"mode": whole["mode"], "finish_reason": whole["finish_reason"]}
    return stats


def _logprobs(events: list[StreamEvent]) -> list[dict[str, Any]]:
    return [
        {"token": entry.token, "logprob": entry.logprob, "top": entry.top} for event in events for entry in event.step.logprobs
    ]


class ResponseSender:
    """The thread that sends. It also asks the server now and then whether clients have left."""

    def __init__(
        self,
        backend: Backend,
        cancel: Callable[[int], None],
        on_end: Callable[[ResponseStream, StreamEvent | NemodiffError], None],
        cancel_poll_s: float,
    ) -> None:
        """Start the thread.

        Args:
            backend: Triton's utilities.
            cancel: ends a request of the engine by number.
            on_end: told what ended each stream, once that was sent.
            cancel_poll_s: seconds between two rounds of asking.
        """
        self._backend = backend
        self._cancel = cancel
        self._on_end = on_end
        self._poll_s = cancel_poll_s
        self._condition = threading.Condition()
        # In the order in which they became ready; a dictionary so that each is there once.
        self._ready: dict[ResponseStream, None] = {}
        self._open: dict[ResponseStream, bool] = {}
        self._is_closing = False
        self._thread = threading.Thread(target=self._loop, name="nemodiff-responses", daemon=True)
        self._thread.start()

    @property
    def num_open(self) -> int:
        """Requests that have not got their last response."""
        return len(self._open)

    def open(self, sender: Any, wanted: frozenset[str], prompt_name: str, is_streamed: bool) -> ResponseStream:
        """A stream for one request; it ends with an event that has a result, or with an error."""
        stream = ResponseStream(sender, wanted, prompt_name, is_streamed, self._wake)
        with self._condition:
            self._open[stream] = False
            # The thread may wait without an end while nothing is open.
            self._condition.notify_all()
        return stream

    def wait_until_sent(self, timeout_s: float | None = None) -> bool:
        """Wait until every stream has ended; returns whether that came to be."""
        with self._condition:
            return self._condition.wait_for(lambda: not self._open, timeout_s)

    def close(self) -> None:
        """Stop once everything that is ready was sent."""
        with self._condition:
            self._is_closing = True
            self._condition.notify_all()
        self._thread.join()

    def _wake(self, stream: ResponseStream) -> None:
        with self._condition:
            self._ready[stream] = None
            self._condition.notify_all()

    def _loop(self) -> None:
        next_poll_s = time.monotonic() + self._poll_s
        while True:
            with self._condition:
                self._condition.wait_for(lambda: self._open or self._is_closing)
                until_poll_s = max(next_poll_s - time.monotonic(), 0.0)
                self._condition.wait_for(lambda: self._ready or self._is_closing, until_poll_s)
                ready, self._ready = list(self._ready), {}
                if self._is_closing and not ready:
                    return
            for stream in ready:
                self._send(stream)
            if time.monotonic() >= next_poll_s:
                self._look_for_leavers()
                next_poll_s = time.monotonic() + self._poll_s

    def _send(self, stream: ResponseStream) -> None:
        if stream not in self._open:
            return
        end = stream.send(self._backend)
        if end is not None:
            self._on_end(stream, end)
            with self._condition:
                del self._open[stream]
                self._condition.notify_all()

    def _look_for_leavers(self) -> None:
        with self._condition:
            waiting = [stream for stream, is_cancelled in self._open.items() if not is_cancelled]
        for stream in waiting:
            # Not known to the engine yet, or refused by it: its error is on the way.
            if stream.number is None or not stream.number.done() or stream.number.exception() is not None:
                continue
            if stream.was_left:
                self._open[stream] = True
                self._cancel(stream.number.result())

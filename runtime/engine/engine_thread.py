"""One thread that runs an engine loop for callers on any thread. However many requests wait, there is this one thread."""

from __future__ import annotations

import sys
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, TypeVar

from nemodiff_trt.errors import EngineStoppedError, NemodiffError
from nemodiff_trt.runtime.answer import StreamEvent
from nemodiff_trt.runtime.engine.tri_mode_engine import TriModeEngine
from nemodiff_trt.runtime.options import GenerationOptions
from nemodiff_trt.runtime.prompts import Prompt

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Listener:
    """Where the events of one request go; both are called on the engine's thread and must return at once.

    After an event with a result, or after `on_error`, nothing more comes.
    """

    on_event: Callable[[StreamEvent], None]
    on_error: Callable[[NemodiffError], None]


class EngineThread:
    """Owns an engine: while the thread runs, nobody else may touch it, `check` aside, which changes nothing.

    An engine run that fails ends all requests with the error, because what the cache holds is unknown then, and the thread:
    later requests are refused with the same reason.
    """

    def __init__(self, engine: TriModeEngine) -> None:
        """Start the thread."""
        self._engine = engine
        self._wake = threading.Condition()
        self._commands: deque[Callable[[], None]] = deque()
        self._listeners: dict[int, Listener] = {}
        self._is_closing = False
        self._failure: NemodiffError | None = None
        self._thread = threading.Thread(target=self._loop, name="nemodiff-engine", daemon=True)
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """Whether requests are taken: false from `close`, or from an engine run that failed, on."""
        return not self._is_closing

    def check_alive(self) -> None:
        """Refuse requests that can only fail.

        Raises:
            EngineStoppedError: the engine was closed, or a run failed.
        """
        with self._wake:
            if self._is_closing:
                raise self._stopped()

    def check(self, prompt: Prompt, options: GenerationOptions) -> tuple[str, list[int]]:
        """Text and token ids of a prompt, see `TriModeEngine.check`. Runs on the caller's thread: the engine goes on."""
        return self._engine.check(prompt, options)

    def submit(
        self,
        prompt: tuple[str, list[int]],
        options: GenerationOptions,
        listener: Listener,
        *,
        priority: int = 0,
        timeout_s: float | None = None,
        index: int = 0,
    ) -> Future[int]:
        """Queue what `check` returned; the future has the request's number, or the error `TriModeEngine.submit` raised."""

        def command() -> int:
            number = self._engine.submit_checked(prompt, options, priority, timeout_s, index=index)
            self._listeners[number] = listener
            return number

        return self._call(command)

    def cancel(self, number: int) -> None:
        """End a request with what it has; its result still comes. One that has ended is left alone."""
        self._call(lambda: self._engine.cancel(number))

    def stats(self) -> Future[dict[str, Any]]:
        """See `TriModeEngine.stats`."""
        return self._call(self._engine.stats)

    def drain(self) -> Future[None]:
        """Refuse new requests; those that are here are answered."""
        return self._call(self._engine.drain)

    def close(self) -> None:
        """Stop after the current step. Requests that are not finished get an error."""
        with self._wake:
            self._is_closing = True
            self._wake.notify()
        self._thread.join()

    def _call(self, work: Callable[[], Result]) -> Future[Result]:
        """Run `work` on the engine's thread."""
        future: Future[Result] = Future()

        def command() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(work())
            except NemodiffError as error:
                future.set_exception(error)

        with self._wake:
            if self._is_closing:
                future.set_exception(self._stopped())
                return future
            self._commands.append(command)
            self._wake.notify()
        return future

    def _stopped(self) -> NemodiffError:
        return self._failure or EngineStoppedError("the engine was stopped")

    def _loop(self) -> None:
        try:
            while self._wait_for_work():
                while self._commands:
                    self._commands.popleft()()
                self._step()
        finally:
            # An error goes on to the thread's hook, which reports it; waiting callers must hear of it as well.
            self._end(sys.exception())

    def _step(self) -> None:
        for reported in self._engine.step() if self._engine.has_work else ():
            is_last = reported.event.result is not None
            listener = self._listeners.pop(reported.request) if is_last else self._listeners[reported.request]
            listener.on_event(reported.event)

    def _wait_for_work(self) -> bool:
        """False when the thread shall end."""
        with self._wake:
            self._wake.wait_for(lambda: self._is_closing or self._commands or self._engine.has_work)
            return not self._is_closing

    def _end(self, cause: BaseException | None) -> None:
        with self._wake:
            self._is_closing = True
            if cause is not None:
                self._failure = EngineStoppedError(f"the engine stopped: {str(cause) or type(cause).__name__}")
            error = self._stopped()
        # Nothing is appended any more. What was called for before still gets its answer, a request then its error.
        while self._commands:
            self._commands.popleft()()
        for listener in self._listeners.values():
            listener.on_error(error)
        self._listeners.clear()

"""Stages of a build: their times, and who is told about them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol


class ProgressListener(Protocol):
    """Shown what a build does. Called in order: start, advance any number of times, finish."""

    def start(self, stage: str, total: int | None) -> None:
        """A stage begins; `total` is its amount of work if it is known."""

    def advance(self, completed: int) -> None:
        """`completed` of the total is done."""

    def finish(self, stage: str, seconds: float) -> None:
        """The stage ended without an error."""


class SilentListener:
    """Shows nothing."""

    def start(self, stage: str, total: int | None) -> None:
        pass

    def advance(self, completed: int) -> None:
        pass

    def finish(self, stage: str, seconds: float) -> None:
        pass


class StageClock:
    """Times the stages of one build and passes them on."""

    def __init__(self, listener: ProgressListener) -> None:
        self.listener = listener
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str, total: int | None = None) -> Iterator[None]:
        """Run one stage."""
        self.listener.start(name, total)
        started = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - started
        self.listener.finish(name, self.seconds[name])

"""How far a batch job is, on standard error: a bar on a terminal, otherwise a line at every tenth of it."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Self

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from nemodiff_trt.runtime.batch.run import Progress as BatchState
from nemodiff_trt.runtime.cli.output import notes

_NUM_LINES = 10


class BatchProgress:
    """A context whose `tell` follows a job."""

    def __init__(self) -> None:
        self._console = notes()
        self._is_bar = sys.stderr.isatty()
        columns = (
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[speed]}"),
            TimeRemainingColumn(),
        )  # fmt: skip
        self._bar = Progress(*columns, console=self._console, transient=True, disable=not self._is_bar)
        self._task = self._bar.add_task("", total=None, speed="")
        self._stage, self._stage_begin_s, self._num_told = "", 0.0, 0

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._bar.stop()

    def tell(self, state: BatchState) -> None:
        """Show `state`."""
        if state.stage != self._stage:
            # The first state of a stage comes with its first shard, so the speed counts from the one before.
            self._stage, self._stage_begin_s, self._num_told = state.stage, time.perf_counter(), 0
            self._bar.reset(self._task, total=state.num_rows, description=state.stage, completed=state.rows, speed="")
        passed_s = time.perf_counter() - self._stage_begin_s
        speed = f"{state.new_tokens / passed_s:.0f} tokens/s" if state.new_tokens and passed_s > 1 else ""
        self._bar.update(self._task, completed=state.rows, speed=speed)
        num_reached = state.rows * _NUM_LINES // max(state.num_rows, 1)
        if not self._is_bar and state.stage == "answering" and num_reached > self._num_told:
            self._num_told = num_reached
            self._console.print(f"{state.rows} of {state.num_rows} rows", markup=False)

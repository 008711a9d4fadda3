"""A worker: one process, one model, one shard after the other."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from nemodiff_trt.bundle import Bundle
from nemodiff_trt.errors import BatchError, InvalidInputError
from nemodiff_trt.runtime.answer import GenerationResult
from nemodiff_trt.runtime.batch.attempts import begin_attempt, forget_attempts
from nemodiff_trt.runtime.batch.input_file import RawRow, Shard, read_rows
from nemodiff_trt.runtime.batch.job import WorkerSetup
from nemodiff_trt.runtime.batch.parts import Totals, check_part, part_path, write_part
from nemodiff_trt.runtime.batch.requests import ID, RequestReader, RowRequest, at_line, row_id_of
from nemodiff_trt.runtime.engine import EngineOptions, TriModeEngine
from nemodiff_trt.runtime.result_json import to_json
from nemodiff_trt.runtime.tri_mode_lm import TriModeLM


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardReport:
    """What became of one shard; `worker` names the host and the process."""

    shard: int
    totals: Totals
    seconds: float
    worker: str


class ShardWorker:
    """Answers shards and publishes their parts. A shard whose part is there is left alone, so a shard may come twice."""

    def __init__(self, engine: TriModeEngine, setup: WorkerSetup) -> None:
        """Use `open`; or bring an engine."""
        self._engine = engine
        self._setup = setup
        self._reader = RequestReader(engine.tokenizer, setup.settings.options, setup.settings.use_chat)

    @classmethod
    def open(cls, setup: WorkerSetup) -> ShardWorker:
        """Open the bundle.

        Raises:
            BundleError: it is damaged, or nothing here runs its target.
            BatchError: it is not the bundle of the job.
            InvalidInputError: an option is not usable with it.
        """
        found = Bundle.open(setup.bundle_dir, verify=False).manifest.build_key
        if found != setup.build_key:
            where = socket.gethostname()
            raise BatchError(f"{setup.bundle_dir} on {where} is another bundle: build key {found}, not {setup.build_key}")
        limits = EngineOptions(max_active=setup.max_active, max_waiting=None)
        model = TriModeLM.from_bundle(setup.bundle_dir, setup.verify, setup.num_threads, limits)
        return cls(model.engine, setup)

    def run(self, shard: Shard) -> ShardReport:
        """Answer one shard.

        Raises:
            BatchError: the input has changed, or the part cannot be written.
            InvalidInputError: a row cannot be served, and bad rows are not to be skipped.
        """
        begin_s = time.perf_counter()
        rows = read_rows(self._setup.input_path, shard)
        path = part_path(self._setup.output_dir, shard)
        if not path.exists():
            begin_attempt(path, self._setup.max_attempts)
            write_part(path, self._answers(rows))
            forget_attempts(path, self._setup.max_attempts)
        totals = check_part(path, rows)
        worker = f"{socket.gethostname()}:{os.getpid()}"
        return ShardReport(shard=shard.index, totals=totals, seconds=time.perf_counter() - begin_s, worker=worker)

    def _answers(self, rows: Sequence[RawRow]) -> list[dict[str, Any]]:
        """Answers in the order of the rows, all of them decoded together."""
        answers: dict[int, dict[str, Any]] = {}
        waiting: dict[int, tuple[RawRow, RowRequest]] = {}
        try:
            for row in rows:
                try:
                    request = self._reader.read(row)
                    checked = self._engine.check(request.prompt, request.options)
                except InvalidInputError as error:
                    answers[row.index] = self._refusal(row, error)
                else:
                    number = self._engine.submit_checked(checked, request.options, stream_text=False)
                    waiting[number] = (row, request)
            while waiting:
                for reported in self._engine.step():
                    if reported.event.result is not None and reported.request in waiting:
                        row, request = waiting.pop(reported.request)
                        answers[row.index] = self._answer(row, request, reported.event.result)
        finally:
            for number in waiting:
                self._engine.cancel(number)
        return [answers[row.index] for row in rows]

    def _refusal(self, row: RawRow, error: InvalidInputError) -> dict[str, Any]:
        if not self._setup.settings.skip_bad_rows:
            raise at_line(error, self._setup.input_path.name, row) from error
        return _head(row, row_id_of(row)) | {"error": str(error)}

    def _answer(self, row: RawRow, request: RowRequest, result: GenerationResult) -> dict[str, Any]:
        content = to_json(result)
        # The prompt is in the input, under the same index.
        del content["prompt"]
        if not self._setup.settings.keep_token_ids:
            del content["token_ids"]
        return _head(row, request.row_id) | content


def _head(row: RawRow, row_id: str | int | None) -> dict[str, Any]:
    own = {} if row_id is None else {ID: row_id}
    return {"index": row.index, **own, "key": row.key}

"""A batch job on a small bundle, and an executor that can be made to fail."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from nemodiff_trt.bundle import Bundle
from nemodiff_trt.runtime.batch.input_file import Shard
from nemodiff_trt.runtime.batch.job import AnswerSettings, WorkerSetup
from nemodiff_trt.runtime.batch.run import BatchSummary, run_batch
from nemodiff_trt.runtime.batch.worker import ShardReport, ShardWorker
from nemodiff_trt.runtime.options import GenerationOptions
from nemodiff_trt.runtime.tri_mode_lm import TriModeLM

Row = dict[str, Any]
OPTIONS = GenerationOptions(max_new_tokens=4)


class WorkerDiedError(Exception):
    """What the tests let happen between or within shards."""


@dataclasses.dataclass
class OneEngine:
    """Runs shards one by one on an engine that is already open, until it dies.

    `dies_after` shards, before the next one or, with `is_torn`, while the next one is written. `num_answered` counts the rows
    that were decoded.
    """

    model: TriModeLM
    dies_after: int | None = None
    is_torn: bool = False
    num_answered: int = 0

    def __call__(self, setup: WorkerSetup, shards: Sequence[Shard]) -> Iterator[ShardReport]:
        worker = ShardWorker(self.model.engine, setup)
        for number, shard in enumerate(shards):
            if number == self.dies_after:
                if self.is_torn:
                    (setup.output_dir / f".part-{shard.index:05d}.jsonl-0.partial").write_bytes(b'{"index": 0, "tex')
                raise WorkerDiedError
            report = worker.run(shard)
            self.num_answered += report.totals.rows
            yield report


@dataclasses.dataclass(frozen=True)
class Job:
    """A job whose input and settings a test chooses."""

    setup: WorkerSetup
    model: TriModeLM

    def write(self, rows: Sequence[Row | str]) -> None:
        lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        self.setup.input_path.write_text("\n".join(lines) + "\n", encoding="utf-8")

    def changed(self, **settings: Any) -> Job:
        changed = dataclasses.replace(self.setup.settings, **settings)
        return dataclasses.replace(self, setup=dataclasses.replace(self.setup, settings=changed))

    def run(self, shard_size: int = 3, execute: OneEngine | None = None, merge: bool = True) -> BatchSummary:
        execute = execute or OneEngine(self.model)
        return run_batch(self.setup, shard_size, execute, merge=merge, tell=lambda _: None)

    def answers(self) -> list[Row]:
        lines = (self.setup.output_dir / "answers.jsonl").read_bytes().splitlines()
        return [json.loads(line) for line in lines]


def make_job(model: TriModeLM, bundle_dir: Path, folder: Path) -> Job:
    setup = WorkerSetup(
        bundle_dir=bundle_dir,
        build_key=Bundle.open(bundle_dir, verify=False).manifest.build_key,
        input_path=folder / "rows.jsonl",
        output_dir=folder / "out",
        settings=AnswerSettings(options=OPTIONS, keep_token_ids=True),
        num_threads=1,
        verify=False,
    )
    return Job(setup, model)

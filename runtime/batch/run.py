"""A batch job from its input to one file of answers in the order of the rows."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from nemodiff_trt.bundle import Bundle
from nemodiff_trt.errors import BatchError
from nemodiff_trt.runtime.batch.atomic_file import write_lines
from nemodiff_trt.runtime.batch.check_rows import check_rows, check_settings, checks_of
from nemodiff_trt.runtime.batch.executors import Executor
from nemodiff_trt.runtime.batch.input_file import InputFile, Shard
from nemodiff_trt.runtime.batch.job import WorkerSetup, job_record
from nemodiff_trt.runtime.batch.job_folder import JobFolder
from nemodiff_trt.runtime.batch.parts import Totals, check_part, part_path, read_part


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a run is.

    Attributes:
        stage: what it does now, in a word.
        rows: rows that this stage is done with.
        num_rows: rows of the job.
        new_tokens: tokens that this run has made.
    """

    stage: str
    rows: int
    num_rows: int
    new_tokens: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchSummary:
    """A finished job.

    Attributes:
        totals: of all rows.
        num_shards: parts of the job.
        reused_shards: of these, answered by earlier runs.
        answered_rows: rows that this run answered.
        workers: processes that took part in this run.
        seconds: time of the stage in which rows were answered, the opening of bundles included.
    """

    totals: Totals
    num_shards: int
    reused_shards: int
    answered_rows: int
    workers: tuple[str, ...]
    seconds: float


Tell = Callable[[Progress], None]


def run_batch(setup: WorkerSetup, shard_size: int, execute: Executor, *, merge: bool = True, tell: Tell) -> BatchSummary:
    """Answer every row that has no answer yet, and join the parts.

    Args:
        setup: of the workers.
        shard_size: rows of a shard.
        execute: who answers them.
        merge: write all answers into one file, in the order of the rows; otherwise the parts are only compared with them.
        tell: hears how far it is.

    Raises:
        InvalidInputError: an option or a row is not usable, the folder holds another job, or another run writes to it.
        BatchError: a worker failed, or a file is not what was written. What was published stays, and the job can be resumed.
        BundleError: the bundle is damaged, or nothing runs its target.
    """
    folder = JobFolder(setup.output_dir)
    checks = checks_of(Bundle.open(setup.bundle_dir, verify=setup.verify))
    check_settings(checks, setup.settings)
    source = InputFile.scan(setup.input_path, shard_size)
    record = job_record(source, shard_size, setup.settings, setup.build_key)
    with folder:
        if not folder.is_resumed(record):
            if not setup.settings.skip_bad_rows:
                _follow(check_rows(checks, source, setup.settings), source, "checking", tell)
            folder.start(record)
        open_shards = _open_shards(folder, source, tell)
        begin_s = time.perf_counter()
        answered, workers = _answer(setup, open_shards, execute, source.num_rows, tell)
        seconds = time.perf_counter() - begin_s
        totals = _finish(folder, source, merge, tell)
    return BatchSummary(
        totals=totals,
        num_shards=len(source.shards),
        reused_shards=len(source.shards) - len(open_shards),
        answered_rows=answered.rows,
        workers=workers,
        seconds=seconds,
    )


def _follow(steps: Iterator[int], source: InputFile, stage: str, tell: Tell) -> None:
    rows = 0
    for step in steps:
        rows += step
        tell(Progress(stage=stage, rows=rows, num_rows=source.num_rows))


def _open_shards(folder: JobFolder, source: InputFile, tell: Tell) -> list[Shard]:
    """Shards without a part. Those there are get compared with their rows now, not when all the others are done."""
    missing: list[Shard] = []
    rows = 0
    for shard in source.shards:
        path = part_path(folder.path, shard)
        if not path.exists():
            missing.append(shard)
            continue
        rows += check_part(path, source.rows(shard)).rows
        tell(Progress(stage="resuming", rows=rows, num_rows=source.num_rows))
    return missing


def _answer(
    setup: WorkerSetup, shards: list[Shard], execute: Executor, num_rows: int, tell: Tell
) -> tuple[Totals, tuple[str, ...]]:
    rows_before = num_rows - sum(shard.num_rows for shard in shards)
    done, workers = Totals(), dict[str, None]()
    for report in execute(setup, shards):
        done += report.totals
        workers[report.worker] = None
        tell(Progress(stage="answering", rows=rows_before + done.rows, num_rows=num_rows, new_tokens=done.new_tokens))
    return done, tuple(workers)


def _finish(folder: JobFolder, source: InputFile, merge: bool, tell: Tell) -> Totals:
    """Compare every part with its rows; with `merge`, what was compared is what is written."""
    done = Totals()

    def lines() -> Iterator[bytes]:
        nonlocal done
        for shard in source.shards:
            for line, totals in read_part(part_path(folder.path, shard), source.rows(shard)):
                done += totals
                yield line
            tell(Progress(stage="joining", rows=done.rows, num_rows=source.num_rows))

    if not merge:
        for _ in lines():
            pass
        return done
    try:
        write_lines(folder.answers_path, lines())
    except OSError as error:
        raise BatchError(f"cannot write {folder.answers_path}: {error.strerror}") from error
    return done

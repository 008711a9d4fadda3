"""`nemodiff batch`: answer the rows of a large file, each exactly once, with as many workers as there are."""

from __future__ import annotations

import dataclasses
import sys
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nemodiff_trt.errors import InvalidInputError
from nemodiff_trt.runtime.cli.answer_options import AnswerArguments, read_generation
from nemodiff_trt.runtime.cli.options import AsJson, BundleDir, NumThreads, Verify

if TYPE_CHECKING:
    from nemodiff_trt.runtime.batch.executors import Executor
    from nemodiff_trt.runtime.batch.run import BatchSummary

LOCAL, RAY = "local", "ray"
_ON_RAY = "Ray"


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchArguments(AnswerArguments):
    """Options of the command, in the order of its help."""

    bundle: BundleDir
    input: Annotated[
        Path,
        typer.Option(
            "--input", metavar="F", help='JSONL: "prompt" or "messages" in every line; "id" and options of its own if wanted.'
        ),
    ]
    output: Annotated[
        Path, typer.Option("--output", metavar="DIR", help="Folder of the job; one that was interrupted goes on.")
    ]
    shard_size: Annotated[
        int, typer.Option("--shard-size", metavar="N", help="Rows that are answered together, and lost together.")
    ] = 256
    skip_bad_rows: Annotated[
        bool, typer.Option("--skip-bad-rows", help="Give a row that cannot be served an error in place of an answer.")
    ] = False
    token_ids: Annotated[bool, typer.Option("--token-ids", help="Write the token ids of answers as well.")] = False
    merge: Annotated[
        bool, typer.Option("--merge/--no-merge", help="Join the parts into one file in the order of the rows.")
    ] = True
    max_active: Annotated[
        int | None, typer.Option("--max-active", metavar="N", help="Rows a worker answers at a time. Default: the built batch.")
    ] = None
    backend: Annotated[
        str, typer.Option("--backend", metavar="B", help="local: this process. ray: worker processes, on one node or many.")
    ] = LOCAL
    workers: Annotated[int, typer.Option("--workers", metavar="N", help="Worker processes.", rich_help_panel=_ON_RAY)] = 1
    ray_address: Annotated[
        str,
        typer.Option(
            "--ray-address", metavar="A", help="auto, or HOST:PORT of a cluster; local starts one.", rich_help_panel=_ON_RAY
        ),
    ] = "local"
    gpus_per_worker: Annotated[
        float | None,
        typer.Option(
            "--gpus-per-worker",
            metavar="X",
            help="GPUs, or a share of one. Default: 1 for engines that run on a GPU.",
            rich_help_panel=_ON_RAY,
        ),
    ] = None
    max_attempts: Annotated[
        int,
        typer.Option(
            "--max-attempts",
            metavar="N",
            help="Times a shard is begun before the job fails, because its workers die.",
            rich_help_panel=_ON_RAY,
        ),
    ] = 4
    as_json: AsJson = False
    num_threads: NumThreads = None
    verify: Verify = True


def batch(arguments: BatchArguments) -> None:
    """Answer the rows of a JSONL file, each exactly once; a run that was interrupted goes on where it was (docs/scaling.md)."""
    options = read_generation(arguments)

    from nemodiff_trt.bundle import Bundle
    from nemodiff_trt.runtime.batch.job import AnswerSettings, WorkerSetup
    from nemodiff_trt.runtime.batch.run import run_batch
    from nemodiff_trt.runtime.cli.batch_progress import BatchProgress

    manifest = Bundle.open(arguments.bundle, verify=False).manifest
    execute = _executor(arguments, manifest.target.is_for_gpu)
    _check_limits(arguments, manifest.limits.max_batch_size)
    num_threads = arguments.num_threads
    if num_threads is None and arguments.backend == RAY and not manifest.target.is_for_gpu:
        # One worker of many leaves the other CPUs to the others.
        num_threads = 1
    setup = WorkerSetup(
        bundle_dir=arguments.bundle.absolute(),
        build_key=manifest.build_key,
        input_path=arguments.input.absolute(),
        output_dir=arguments.output.absolute(),
        settings=AnswerSettings(
            options=options,
            use_chat=arguments.chat,
            skip_bad_rows=arguments.skip_bad_rows,
            keep_token_ids=arguments.token_ids,
        ),
        max_active=arguments.max_active,
        num_threads=num_threads,
        verify=arguments.verify,
        max_attempts=arguments.max_attempts,
    )
    # Ray writes remarks about workers that died to standard output, which is for the result.
    with BatchProgress() as progress, redirect_stdout(sys.stderr):
        summary = run_batch(setup, arguments.shard_size, execute, merge=arguments.merge, tell=progress.tell)
    _report(arguments, summary)


def _executor(arguments: BatchArguments, is_for_gpu: bool) -> Executor:
    from nemodiff_trt.runtime.batch.executors import run_locally

    if arguments.backend == LOCAL:
        if arguments.workers != 1:
            raise InvalidInputError("workers", arguments.workers, f"1 with backend {LOCAL}; more need --backend {RAY}")
        return run_locally
    if arguments.backend != RAY:
        raise InvalidInputError("backend", arguments.backend, f"{LOCAL} or {RAY}")
    try:
        from nemodiff_trt.runtime.batch.ray_executor import RayExecutor
    except ImportError as error:
        allowed = f"{LOCAL}, or pip install 'nemodiff_trt[ray]' first ({error.name} is missing)"
        raise InvalidInputError("backend", RAY, allowed) from error
    return RayExecutor(
        num_workers=arguments.workers,
        address=arguments.ray_address,
        num_gpus=float(is_for_gpu) if arguments.gpus_per_worker is None else arguments.gpus_per_worker,
    )


def _check_limits(arguments: BatchArguments, max_batch_size: int) -> None:
    """What workers would find out only when they open the bundle."""
    if arguments.max_active is not None and not 1 <= arguments.max_active <= max_batch_size:
        raise InvalidInputError("max_active", arguments.max_active, f"1 to {max_batch_size}, the built maximum")
    if arguments.num_threads is not None and arguments.num_threads < 1:
        raise InvalidInputError("num_threads", arguments.num_threads, "an integer of at least 1")


def _report(arguments: BatchArguments, summary: BatchSummary) -> None:
    from nemodiff_trt.runtime.batch.job_folder import ANSWERS_FILE
    from nemodiff_trt.runtime.cli.output import write, write_json

    totals = summary.totals
    answers = arguments.output / ANSWERS_FILE if arguments.merge else arguments.output
    if arguments.as_json:
        write_json(
            {
                "answers": str(answers),
                **dataclasses.asdict(totals),
                "shards": summary.num_shards,
                "reused_shards": summary.reused_shards,
                "answered_rows": summary.answered_rows,
                "workers": list(summary.workers),
                "seconds": summary.seconds,
            }
        )
        return
    bad = f", {totals.bad_rows} with an error" if totals.bad_rows else ""
    reused = f", {totals.rows - summary.answered_rows} of them by earlier runs" if summary.reused_shards else ""
    write(f"{answers}: {totals.rows} rows{reused}{bad}, {totals.new_tokens} tokens\n")

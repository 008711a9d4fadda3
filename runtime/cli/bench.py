"""`nemodiff bench`: modes and baselines on the same prompts, checked, timed, written to a file; and runs compared."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nemodiff_trt.errors import InvalidInputError
from nemodiff_trt.runtime.cli.options import NumThreads

if TYPE_CHECKING:
    from nemodiff_trt.runtime.bench.workload import Workload


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchArguments:
    """Options of the command, in the order of its help."""

    bundle: Annotated[Path | None, typer.Option("--bundle", metavar="DIR", help="Folder written by build_engines.")] = None
    workload: Annotated[
        list[str] | None,
        typer.Option("--workload", metavar="W", help='"generated", or a file: prompts, Spec-Bench, SPEED-Bench; repeatable.'),
    ] = None
    num_prompts: Annotated[int, typer.Option("--num-prompts", metavar="N", min=1, help="Of a workload at most.")] = 64
    modes: Annotated[str, typer.Option("--modes", metavar="M,M", help="Fixed modes.")] = "ar,diffusion,self_speculation"
    block_lengths: Annotated[str, typer.Option("--block-lengths", metavar="B,B")] = "8,16,32"
    thresholds: Annotated[str, typer.Option("--thresholds", metavar="X,X", help="Of diffusion.")] = "0.9"
    concurrency: Annotated[str, typer.Option("--concurrency", metavar="N,N", help="Requests at a time.")] = "1"
    baselines: Annotated[
        str, typer.Option("--baselines", help="prompt_lookup, transformers, transformers_prompt_lookup, or empty.")
    ] = "prompt_lookup"
    checkpoint: Annotated[str | None, typer.Option("--checkpoint", help="The bundle's, for transformers.")] = None
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", metavar="N", help="Limit of an answer.")] = 128
    num_repeats: Annotated[int, typer.Option("--num-repeats", metavar="N", help="Timed rounds.")] = 3
    num_timed_prompts: Annotated[
        int | None, typer.Option("--num-timed-prompts", metavar="N", help="Of a workload; all unless given.")
    ] = None
    allow_differences: Annotated[
        bool, typer.Option("--allow-differences", help="Time cases that differ from ar, as half precision may.")
    ] = False
    run: Annotated[Path | None, typer.Option("--run", metavar="FILE", help="Read a run instead of making one.")] = None
    output: Annotated[Path | None, typer.Option("--output", metavar="FILE", help="Where the run goes, as JSON.")] = None
    report: Annotated[Path | None, typer.Option("--report", metavar="FILE", help="Where an HTML page of it goes.")] = None
    compare: Annotated[tuple[Path, Path] | None, typer.Option("--compare", metavar="A B", help="Compare two runs.")] = None
    num_threads: NumThreads = None


def bench(arguments: BenchArguments) -> int:
    """Measure modes and baselines; the last line of standard output is one JSON object."""
    from nemodiff_trt.runtime.bench.compare import compare
    from nemodiff_trt.runtime.bench.lookup_verdict import verdict_line
    from nemodiff_trt.runtime.bench.result_file import read_result
    from nemodiff_trt.runtime.cli.output import notes, write_atomically, write_json

    if sum(given is not None for given in (arguments.bundle, arguments.run, arguments.compare)) != 1:
        raise InvalidInputError("bench", "none or several of --bundle, --run, --compare", "exactly one of them")
    for path in (arguments.output, arguments.report):
        if path is not None and not path.parent.is_dir():
            raise InvalidInputError("output", str(path), "a file in an existing folder")
    if arguments.compare is not None:
        first, second = (read_result(path) for path in arguments.compare)
        write_json(compare(first, second))
        return 0
    result = read_result(arguments.run) if arguments.run is not None else _measured(arguments)
    if arguments.output is not None:
        write_atomically(arguments.output, json.dumps(result, allow_nan=False) + "\n")
    if arguments.report is not None:
        from nemodiff_trt.runtime.bench.report import render

        write_atomically(arguments.report, render(result))
    for verdict in result["lookup_verdicts"]:
        notes().print(verdict_line(verdict))
    write_json(result)
    return 0


def _measured(arguments: BenchArguments) -> dict[str, Any]:
    import os

    from nemodiff_trt.bundle import Bundle
    from nemodiff_trt.runtime.bench.result_file import describe_run
    from nemodiff_trt.runtime.bench.run import Bench
    from nemodiff_trt.runtime.bench.settings import BenchSettings
    from nemodiff_trt.runtime.cli.output import notes
    from nemodiff_trt.runtime.open_session import open_session
    from nemodiff_trt.runtime.planner.calibrate import measure_steps
    from nemodiff_trt.tokenizer import Tokenizer

    assert arguments.bundle is not None, "checked before"
    settings = BenchSettings(
        modes=_items("modes", arguments.modes, _mode),
        block_lengths=_items("block-lengths", arguments.block_lengths, int),
        thresholds=_items("thresholds", arguments.thresholds, float),
        concurrency=_items("concurrency", arguments.concurrency, int),
        baselines=_items("baselines", arguments.baselines, str),
        max_new_tokens=arguments.max_new_tokens,
        num_repeats=arguments.num_repeats,
        num_timed_prompts=arguments.num_timed_prompts,
    )
    workloads = [_workload(name, arguments.num_prompts) for name in arguments.workload or ["generated"]]
    bundle = Bundle.open(arguments.bundle)
    session = open_session(bundle, arguments.num_threads)
    model = Bench(
        session,
        Tokenizer.from_dir(bundle.tokenizer_dir),
        _reference_model(arguments.checkpoint),
        require_equal=not arguments.allow_differences,
    )
    runs = model.run(workloads, settings, notes().print)
    threads = arguments.num_threads or len(os.sched_getaffinity(0))
    return describe_run(bundle, workloads, settings, threads, runs, measure_steps(session))


def _reference_model(checkpoint: str | None) -> Any:
    if checkpoint is None:
        return None
    from nemodiff_trt.checkpoint import Checkpoint, resolve_checkpoint

    try:
        from nemodiff_trt.runtime.bench.reference_model import ReferenceModel
    except ImportError as error:
        raise InvalidInputError("checkpoint", checkpoint, "nothing without transformers: the extra bench has it") from error
    return ReferenceModel(Checkpoint.open(resolve_checkpoint(checkpoint)))


def _workload(name: str, num_prompts: int) -> Workload:
    from nemodiff_trt.runtime.bench.prompt_files import read_workload
    from nemodiff_trt.runtime.bench.workload import GENERATED, generated_workload

    return generated_workload(num_prompts) if name == GENERATED else read_workload(Path(name), num_prompts)


def _mode(text: str) -> Any:
    from nemodiff_trt.runtime.bench.settings import FIXED_MODES
    from nemodiff_trt.vocabulary import Mode

    if text not in FIXED_MODES:
        raise InvalidInputError("modes", text, ", ".join(FIXED_MODES))
    return Mode(text)


def _items(field: str, text: str, kind: Any) -> tuple[Any, ...]:
    try:
        return tuple(kind(part.strip()) for part in text.split(",") if part.strip())
    except InvalidInputError:
        # Says itself which value it is.
        raise
    except ValueError as error:
        raise InvalidInputError(field, text, f"values with commas between them ({error})") from error

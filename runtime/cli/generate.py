"""`nemodiff generate`: answer prompts."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nemodiff_trt.errors import InvalidInputError
from nemodiff_trt.runtime.cli.answer_options import AnswerArguments, read_generation
from nemodiff_trt.runtime.cli.options import AsJson, BundleDir, NumThreads, Verify

if TYPE_CHECKING:
    from nemodiff_trt.runtime.answer import GenerationResult
    from nemodiff_trt.runtime.options import GenerationOptions
    from nemodiff_trt.runtime.tri_mode_lm import TriModeLM


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerateArguments(AnswerArguments):
    """Options of the command, in the order of its help."""

    bundle: BundleDir
    source: Annotated[str | None, typer.Argument(metavar="[-]", help="Read prompts from standard input.")] = None
    prompt: Annotated[list[str] | None, typer.Option("--prompt", metavar="T", help="Prompt; may be repeated.")] = None
    prompts_file: Annotated[
        str | None,
        typer.Option("--prompts-file", metavar="F", help='One prompt a line: JSON with "prompt" or "messages", or plain text.'),
    ] = None
    sampler: Annotated[
        Path | None,
        typer.Option("--sampler", metavar="DIR", help="diffusion: learned sampler whose scores the threshold is of."),
    ] = None
    stream: Annotated[bool, typer.Option("--stream", help="Print text as soon as it is certain.")] = False
    logprobs: Annotated[
        int | None,
        typer.Option("--logprobs", metavar="N", help="With --json: log-probabilities of tokens and N alternatives."),
    ] = None
    as_json: AsJson = False
    num_threads: NumThreads = None
    verify: Verify = True


def generate(arguments: GenerateArguments) -> None:
    """Answer prompts, in the order given."""
    from nemodiff_trt.runtime.cli.open_model import as_chat, open_model
    from nemodiff_trt.runtime.cli.prompt_source import read_prompts

    if arguments.stream and arguments.as_json:
        raise InvalidInputError("stream", True, "one of stream and json")
    if arguments.logprobs is not None and not arguments.as_json:
        raise InvalidInputError("logprobs", arguments.logprobs, "nothing without json, which reports them")
    options = read_generation(arguments, arguments.logprobs)
    if arguments.sampler is not None:
        options = options.changed(learned_sampler=True)
    lines = read_prompts(arguments.prompt or [], arguments.prompts_file, arguments.source)
    model = open_model(arguments.bundle, arguments.num_threads, arguments.verify, arguments.sampler)
    prompts = as_chat(lines, model, arguments.chat, arguments.thinking)
    if arguments.stream:
        _stream(model, prompts, options)
    else:
        _print_results(_in_order(model, prompts, options), len(prompts), arguments.as_json)


def _stream(model: TriModeLM, prompts: list[Any], options: GenerationOptions) -> None:
    from nemodiff_trt.runtime.cli.output import notes, stats_line, write

    console = notes()
    for prompt in prompts:
        for event in model.stream(prompt, options):
            write(event.text)
            if event.result is not None:
                write("\n")
                console.print(stats_line(event.result.stats, event.result.finish_reason), style="dim")


def _in_order(model: TriModeLM, prompts: list[Any], options: GenerationOptions) -> Iterator[GenerationResult]:
    """Results in the order of the prompts, each as soon as all before it are there, with a bar on a terminal."""
    from rich.progress import Progress

    from nemodiff_trt.runtime.cli.output import notes

    waiting: dict[int, GenerationResult] = {}
    next_index = 0
    is_hidden = len(prompts) == 1 or not sys.stderr.isatty()
    with Progress(console=notes(), transient=True, disable=is_hidden) as progress:
        task = progress.add_task("prompts", total=len(prompts))
        for index, result in model.complete(prompts, options):
            progress.advance(task)
            waiting[index] = result
            while next_index in waiting:
                yield waiting.pop(next_index)
                next_index += 1


def _print_results(results: Iterator[GenerationResult], num_prompts: int, as_json: bool) -> None:
    from nemodiff_trt.runtime.cli.output import notes, stats_line, write, write_json
    from nemodiff_trt.runtime.result_json import to_json

    console = notes()
    for number, result in enumerate(results, start=1):
        if as_json:
            write_json(to_json(result))
            continue
        if num_prompts > 1:
            console.print(f"[{number}/{num_prompts}]", style="bold", markup=False)
        write(result.text + "\n")
        console.print(stats_line(result.stats, result.finish_reason), style="dim")

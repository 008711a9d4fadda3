"""`nemodiff generate`: answer prompts."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nemodiff_trt.errors import InvalidInputError
from nemodiff_trt.runtime.cli.options import (
    DEFAULT_MAX_NEW_TOKENS,
    DEFAULT_MODE,
    AsJson,
    BlockLength,
    BundleDir,
    MaxNewTokens,
    ModeName,
    NumThreads,
    Threshold,
    Verify,
)
from nemodiff_trt.runtime.cli.sampling_options import SamplingArguments, read_sampling

if TYPE_CHECKING:
    from nemodiff_trt.runtime.answer import GenerationResult
    from nemodiff_trt.runtime.options import GenerationOptions
    from nemodiff_trt.runtime.tri_mode_lm import TriModeLM

# The stable part of the statistics; the Python API has more.
STATS_FIELDS = (
    "new_tokens", "forward_passes", "prefill_passes", "tokens_per_forward", "mean_accepted", "prefill_ms", "decode_ms",
    "tokens_per_second",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerateArguments(SamplingArguments):
    """Options of the command, in the order of its help."""

    bundle: BundleDir
    source: Annotated[str | None, typer.Argument(metavar="[-]", help="Read prompts from standard input.")] = None
    prompt: Annotated[list[str] | None, typer.Option("--prompt", metavar="T", help="Prompt; may be repeated.")] = None
    prompts_file: Annotated[
        str | None,
        typer.Option("--prompts-file", metavar="F", help='One prompt a line: JSON with "prompt" or "messages", or plain text.'),
    ] = None
    mode: ModeName = DEFAULT_MODE
    max_new_tokens: MaxNewTokens = DEFAULT_MAX_NEW_TOKENS
    block_length: BlockLength = None
    threshold: Threshold = None
    steps: Annotated[
        int | None, typer.Option("--steps", metavar="N", help="diffusion: passes a block, instead of a threshold.")
    ] = None
    sampler: Annotated[
        Path | None,
        typer.Option("--sampler", metavar="DIR", help="diffusion: learned sampler whose scores the threshold is of."),
    ] = None
    draft_groups: Annotated[
        int | None,
        typer.Option("--draft-groups", metavar="K", help="quadratic: draft for the K most likely lengths of acceptance only."),
    ] = None
    num_leaves: Annotated[
        int, typer.Option("--num-leaves", metavar="N", help="self_speculation: verify N second choices beside a draft.")
    ] = 0
    stop: Annotated[list[str] | None, typer.Option("--stop", metavar="T", help="Text that ends an answer; repeatable.")] = None
    ignore_eos: Annotated[bool, typer.Option("--ignore-eos", help="Go on after the end-of-sequence token.")] = False
    chat: Annotated[
        bool | None, typer.Option("--chat/--no-chat", help="Apply the chat template. Default: if the model has one.")
    ] = None
    thinking: Annotated[bool, typer.Option("--thinking", help="Open a think section.")] = False
    max_thinking_tokens: Annotated[
        int | None, typer.Option("--max-thinking-tokens", metavar="N", help="Close it after N tokens.")
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
    from nemodiff_trt.runtime.options import GenerationOptions

    if arguments.stream and arguments.as_json:
        raise InvalidInputError("stream", True, "one of stream and json")
    if arguments.logprobs is not None and not arguments.as_json:
        raise InvalidInputError("logprobs", arguments.logprobs, "nothing without json, which reports them")
    options = GenerationOptions(
        mode=arguments.mode,  # type: ignore[arg-type]
        max_new_tokens=arguments.max_new_tokens,
        block_length=arguments.block_length,
        threshold=arguments.threshold,
        steps=arguments.steps,
        learned_sampler=arguments.sampler is not None,
        draft_groups=arguments.draft_groups,
        num_leaves=arguments.num_leaves,
        stop=tuple(arguments.stop or ()),
        ignore_eos=arguments.ignore_eos,
        max_thinking_tokens=arguments.max_thinking_tokens,
        enable_thinking=arguments.thinking,
        sampling=read_sampling(arguments, arguments.logprobs),
    )
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

    console = notes()
    for number, result in enumerate(results, start=1):
        if as_json:
            write_json(to_json(result))
            continue
        if num_prompts > 1:
            console.print(f"[{number}/{num_prompts}]", style="bold", markup=False)
        write(result.text + "\n")
        console.print(stats_line(result.stats, result.finish_reason), style="dim")


def to_json(result: GenerationResult) -> dict[str, Any]:
    """The documented fields of a result."""
    content = result.to_dict()
    content["token_ids"] = list(result.token_ids)
    content["stats"] = {name: content["stats"][name] for name in STATS_FIELDS}
    if not result.logprobs:
        del content["logprobs"]
    return content

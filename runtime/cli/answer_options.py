"""Options of commands that answer many prompts the same way: the fields of `GenerationOptions`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from nemodiff_trt.runtime.cli.options import (
    DEFAULT_MAX_NEW_TOKENS,
    DEFAULT_MODE,
    BlockLength,
    MaxNewTokens,
    ModeName,
    Threshold,
)
from nemodiff_trt.runtime.cli.sampling_options import SamplingArguments, read_sampling

if TYPE_CHECKING:
    from nemodiff_trt.runtime.options import GenerationOptions


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerArguments(SamplingArguments):
    """How to answer, in the order of the help."""

    mode: ModeName = DEFAULT_MODE
    max_new_tokens: MaxNewTokens = DEFAULT_MAX_NEW_TOKENS
    block_length: BlockLength = None
    threshold: Threshold = None
    steps: Annotated[
        int | None, typer.Option("--steps", metavar="N", help="diffusion: passes a block, instead of a threshold.")
    ] = None
    draft_groups: Annotated[
        int | None,
        typer.Option("--draft-groups", metavar="K", help="quadratic: draft for the K most likely lengths of acceptance only."),
    ] = None
    num_leaves: Annotated[
        int, typer.Option("--num-leaves", metavar="N", help="self_speculation: verify N second choices beside a draft.")
    ] = 0
    lookup_ngram: Annotated[
        int,
        typer.Option("--lookup-ngram", metavar="N", help="self_speculation: draft what followed the last N tokens earlier."),
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


def read_generation(arguments: AnswerArguments, logprobs: int | None = None) -> GenerationOptions:
    """The options given, those of commands that report `logprobs` with their number.

    Raises:
        InvalidInputError: one of them is not usable.
    """
    from nemodiff_trt.runtime.options import GenerationOptions

    return GenerationOptions(
        mode=arguments.mode,  # type: ignore[arg-type]
        max_new_tokens=arguments.max_new_tokens,
        block_length=arguments.block_length,
        threshold=arguments.threshold,
        steps=arguments.steps,
        draft_groups=arguments.draft_groups,
        num_leaves=arguments.num_leaves,
        lookup_ngram=arguments.lookup_ngram,
        stop=tuple(arguments.stop or ()),
        ignore_eos=arguments.ignore_eos,
        max_thinking_tokens=arguments.max_thinking_tokens,
        enable_thinking=arguments.thinking,
        sampling=read_sampling(arguments, logprobs),
    )

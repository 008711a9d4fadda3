"""`nemodiff chat`: a conversation in the terminal."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from nemodiff_trt.errors import InvalidInputError
from nemodiff_trt.runtime.cli.options import (
    DEFAULT_MAX_NEW_TOKENS,
    DEFAULT_MODE,
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
    from rich.console import Console

    from nemodiff_trt.runtime.answer import GenerationResult, StreamEvent
    from nemodiff_trt.runtime.cli.chat_state import ChatState

QUIT = ("/quit", "/exit", "/q")


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatArguments(SamplingArguments):
    """Options of the command, in the order of its help."""

    bundle: BundleDir
    mode: ModeName = DEFAULT_MODE
    max_new_tokens: MaxNewTokens = DEFAULT_MAX_NEW_TOKENS
    block_length: BlockLength = None
    threshold: Threshold = None
    thinking: Annotated[bool, typer.Option("--thinking", help="Open a think section.")] = False
    system: Annotated[str | None, typer.Option("--system", metavar="T", help="System message.")] = None
    show: Annotated[bool, typer.Option("--show", help="Show drafted, accepted and denoised tokens as they appear.")] = False
    num_threads: NumThreads = None
    verify: Verify = True


def chat(arguments: ChatArguments) -> None:
    """Talk to a model in the terminal. /help lists the commands."""
    from rich.console import Console

    from nemodiff_trt.runtime.cli.answer_view import LEGEND
    from nemodiff_trt.runtime.cli.chat_state import ChatState
    from nemodiff_trt.runtime.cli.open_model import open_model
    from nemodiff_trt.runtime.options import GenerationOptions

    options = GenerationOptions(
        mode=arguments.mode,  # type: ignore[arg-type]
        max_new_tokens=arguments.max_new_tokens,
        block_length=arguments.block_length,
        threshold=arguments.threshold,
        enable_thinking=arguments.thinking,
        sampling=read_sampling(arguments),
    )
    model = open_model(arguments.bundle, arguments.num_threads, arguments.verify)
    model.engine.check_options(options)
    if not model.tokenizer.has_chat_template:
        raise InvalidInputError("bundle", str(arguments.bundle), "a bundle whose tokenizer has a chat template")
    state = ChatState(model, options, arguments.show)
    if arguments.system is not None:
        state.messages.append({"role": "system", "content": arguments.system})
    console = Console(highlight=False)
    console.print(f"[bold]{arguments.bundle.name}[/]  /help for commands, Ctrl-D to leave\n[dim]{state.settings()}[/]")
    if state.is_shown:
        console.print(LEGEND)
    _converse(state, console)


def _converse(state: ChatState, console: Console) -> None:
    """Turns until the end of input."""
    from nemodiff_trt.runtime.cli.chat_state import run_command

    _enable_line_editing()
    while True:
        try:
            line = console.input("\n[bold cyan]you ›[/] ").strip()
        except (EOFError, KeyboardInterrupt):
            console.print()
            return
        if line in QUIT:
            return
        try:
            if line.startswith("/"):
                console.print(run_command(state, line), style="dim", markup=False)
            elif line:
                _turn(state, console, line)
        except InvalidInputError as error:
            console.print(str(error), style="red", markup=False)


def _turn(state: ChatState, console: Console, question: str) -> None:
    """One question and its answer; both stay in the history, unless nothing was answered."""
    from nemodiff_trt.runtime.cli.output import stats_line

    before = list(state.messages)
    state.messages.append({"role": "user", "content": question})
    try:
        if num_dropped := state.fit_messages():
            console.print(f"(the oldest {num_dropped} messages no longer fit the context)", style="dim", markup=False)
        text, result = _answer(state, console)
    except InvalidInputError:
        state.messages = before
        raise
    state.messages.append({"role": "assistant", "content": text})
    if result is None:
        console.print("\ninterrupted", style="dim")
    else:
        console.print(stats_line(result.stats, result.finish_reason), style="dim", markup=False)


def _answer(state: ChatState, console: Console) -> tuple[str, GenerationResult | None]:
    """Text of the answer, and its result unless it was interrupted."""
    parts: list[str] = []
    try:
        with closing(state.model.stream(state.messages, state.options)) as events:
            result = None
            for event in _shown(state, console, events) if state.is_shown else _written(console, events):
                parts.append(event.text)
                result = event.result
            return "".join(parts), result
    except KeyboardInterrupt:
        return "".join(parts), None


def _written(console: Console, events: Iterator[StreamEvent]) -> Iterator[StreamEvent]:
    """Print the text of the events as they pass."""
    for event in events:
        console.out(event.text, end="", highlight=False)
        yield event
    console.print()


def _shown(state: ChatState, console: Console, events: Iterator[StreamEvent]) -> Iterator[StreamEvent]:
    """Redraw the answer after each engine run, with a pause to see it where that was asked for."""
    from rich.live import Live

    from nemodiff_trt.runtime.cli.answer_view import AnswerView

    view = AnswerView(state.model.tokenizer, state.options.block_length or state.model.session.limits.block_length)
    with Live(console=console, auto_refresh=False, vertical_overflow="visible") as live:
        for event in events:
            view.push(event)
            live.update(view.text(), refresh=True)
            yield event
            if state.pause_s and event.result is None:
                time.sleep(state.pause_s)
    if not console.is_terminal:
        console.print()


def _enable_line_editing() -> None:
    """Arrow keys and history, where the platform has them: importing the module is what turns them on."""
    with suppress(ImportError):
        import readline  # noqa: F401

"""`nemodiff sol`: how far the modes are from the fewest denoise steps that reach the serial target."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nemodiff_trt.errors import InvalidInputError
from nemodiff_trt.runtime.cli.options import BundleDir, MaxNewTokens, NumThreads, Verify

if TYPE_CHECKING:
    from nemodiff_trt.runtime.speed_of_light.study import StudyPrompt, StudyRow
    from nemodiff_trt.runtime.tri_mode_lm import TriModeLM

BLOCK_LENGTHS = (4, 8, 16, 32)
THRESHOLDS = (0.5, 0.7, 0.9, 0.99)
PLOT_SUFFIXES = (".png", ".svg")


@dataclass(frozen=True, slots=True, kw_only=True)
class SolArguments:
    """Options of the command, in the order of its help."""

    bundle: BundleDir
    output: Annotated[Path | None, typer.Option("--output", metavar="FILE", help="JSON file for all figures.")] = None
    plot: Annotated[Path | None, typer.Option("--plot", metavar="FILE", help="Picture to write, .png or .svg.")] = None
    num_prompts: Annotated[int, typer.Option("--num-prompts", metavar="N", min=1, help="Held-out problems to answer.")] = 40
    categories: Annotated[
        list[str] | None, typer.Option("--category", metavar="C", help="Category of problems; may be repeated. Default: all.")
    ] = None
    prompts_file: Annotated[
        str | None, typer.Option("--prompts-file", metavar="F", help="Prompts of your own, one a line, in place of problems.")
    ] = None
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="Of the problems.")] = 0
    block_lengths: Annotated[
        list[int] | None, typer.Option("--block-length", metavar="B", help="May be repeated. Default: 4, 8, 16 and 32.")
    ] = None
    thresholds: Annotated[
        list[float] | None, typer.Option("--threshold", metavar="X", help="Of mode diffusion; may be repeated.")
    ] = None
    max_new_tokens: MaxNewTokens = 128
    budget: Annotated[
        int, typer.Option("--budget", metavar="N", min=0, help="Forwards that simulations may take, a block.")
    ] = 5000
    num_threads: NumThreads = None
    verify: Verify = True


def sol(arguments: SolArguments) -> int:
    """Analyse the speed of light of block diffusion: serial target, greedy bound, exact compaction, beside the modes.

    Progress and a table go to standard error; standard output holds one line of JSON.
    """
    from rich.progress import Progress

    from nemodiff_trt.runtime.cli.open_model import open_model
    from nemodiff_trt.runtime.cli.output import notes, write_atomically, write_json
    from nemodiff_trt.runtime.speed_of_light.study import StudyOptions, run_study

    if arguments.plot is not None and arguments.plot.suffix not in PLOT_SUFFIXES:
        raise InvalidInputError("plot", str(arguments.plot), f"a file ending in {' or '.join(PLOT_SUFFIXES)}")
    for name, path in (("output", arguments.output), ("plot", arguments.plot)):
        if path is not None and not path.resolve().parent.is_dir():
            raise InvalidInputError(name, str(path), "a file in a folder that exists")
    model = open_model(arguments.bundle, arguments.num_threads, arguments.verify)
    options = StudyOptions(
        tuple(dict.fromkeys(arguments.block_lengths or BLOCK_LENGTHS)),
        tuple(dict.fromkeys(arguments.thresholds or THRESHOLDS)),
        arguments.max_new_tokens,
        arguments.budget,
    )
    prompts = _prompts(arguments, model)
    with Progress(console=notes()) as progress:
        total = len(options.block_lengths) * (len(prompts) + len(options.thresholds) + 1)
        task = progress.add_task("", total=total)
        rows = run_study(model, prompts, options, lambda name: progress.update(task, advance=1, description=name))
    notes().print(_table(rows, len(prompts)))
    content = {"num_prompts": len(prompts), "options": dataclasses.asdict(options), **_summary(rows)}
    if arguments.output is not None:
        every = [dataclasses.asdict(row) for row in rows]
        write_atomically(arguments.output, json.dumps({**content, "rows": every}, indent=1) + "\n")
    if arguments.plot is not None:
        from nemodiff_trt.runtime.speed_of_light.plot import plot_study

        plot_study(rows, arguments.plot)
    write_json(content)
    return 0


def _prompts(arguments: SolArguments, model: TriModeLM) -> list[StudyPrompt]:
    from nemodiff_trt.runtime.cli.open_model import as_chat
    from nemodiff_trt.runtime.cli.prompt_source import read_prompts
    from nemodiff_trt.runtime.speed_of_light.study import StudyPrompt
    from nemodiff_trt.training.problems import held_out_problems

    if arguments.prompts_file is not None:
        if arguments.categories:
            raise InvalidInputError("category", ", ".join(arguments.categories), "nothing beside --prompts-file")
        chats = as_chat(read_prompts([], arguments.prompts_file, None), model, None, thinking=False)
        return [StudyPrompt(chat, "prompts") for chat in chats]
    problems = held_out_problems(arguments.num_prompts, arguments.seed, tuple(arguments.categories or ()))
    return [
        StudyPrompt([{"role": "user", "content": problem.prompt}], problem.category, problem.thinking) for problem in problems
    ]


def _table(rows: list[StudyRow], num_prompts: int) -> Any:
    """Ways in rows, block lengths in columns: acceptance / tokens per forward over all categories."""
    from rich.table import Table

    from nemodiff_trt.runtime.speed_of_light.study import ALL

    chosen = [row for row in rows if row.category == ALL]
    lengths = list(dict.fromkeys(row.block_length for row in chosen))
    table = Table(
        "way",
        *(f"B={length}" for length in lengths),
        title=f"tokens per step / per forward (answers of serial), {num_prompts} prompts",
    )
    for way in dict.fromkeys(row.way for row in chosen):
        table.add_row(way, *(_cell(row) for row in chosen if row.way == way))
    table.add_row("ar", *("1.00 / 1.00" for _ in lengths))
    return table


def _cell(row: StudyRow) -> str:
    if row.acceptance is None or row.tokens_per_forward is None:
        return "-"
    share = "" if row.target_share is None else f" ({row.target_share:.0%})"
    return f"{row.acceptance:.2f} / {row.tokens_per_forward:.2f}{share}"


def _summary(rows: list[StudyRow]) -> dict[str, Any]:
    """Figures over all categories by block length, and how the bounds relate block by block."""
    from nemodiff_trt.runtime.speed_of_light.study import ALL

    by_length: dict[str, dict[str, Any]] = {}
    for row in rows:
        if row.category != ALL:
            continue
        found = by_length.setdefault(str(row.block_length), {})
        found[row.way] = {name: getattr(row, name) for name in ("acceptance", "tokens_per_forward", "target_share")}
        if row.way == "compaction" and row.bounds is not None:
            found["blocks"] = {
                name: getattr(row.bounds, name)
                for name in ("num_blocks", "greedy_inexact", "greedy_fewer_steps", "over_budget", "max_simulated_forwards")
            }
    # Every block was compared; one that differed would have ended the run.
    return {"compaction_equals_serial": True, "block_lengths": by_length}

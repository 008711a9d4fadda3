"""`nemodiff bind`: attach a checkpoint's weights to engines that were compiled from a geometry."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from nemodiff_trt.runtime.cli.options import AsJson, BundleDir


@dataclass(frozen=True, slots=True, kw_only=True)
class BindArguments:
    """Options of the command, in the order of its help."""

    bundle: BundleDir
    checkpoint: Annotated[str, typer.Option("--checkpoint", metavar="DIR", help="Checkpoint folder of the bundle's geometry.")]
    output: Annotated[Path, typer.Option("--output", metavar="DIR", help="Folder of the new bundle.")]
    force: Annotated[bool, typer.Option("--force", help="Replace an existing bundle once the new one is complete.")] = False
    without_adapter: Annotated[
        bool, typer.Option("--without-adapter", help="Accept a checkpoint without draft adapter: drafts use the base weights.")
    ] = False
    as_json: AsJson = False


def bind(arguments: BindArguments) -> int:
    """Write a new bundle: the engines of --bundle with weights and tokenizer of --checkpoint."""
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    from nemodiff_trt.bundle.bind import bind_checkpoint
    from nemodiff_trt.checkpoint import resolve_checkpoint
    from nemodiff_trt.runtime.cli.output import notes, write, write_json

    console = notes()
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("weights", total=None)
        bundle = bind_checkpoint(
            arguments.bundle,
            resolve_checkpoint(arguments.checkpoint),
            arguments.output,
            force=arguments.force,
            without_adapter=arguments.without_adapter,
            on_bytes=lambda size: bar.update(task, completed=size),
        )
    num_bytes = sum(entry.num_bytes for entry in bundle.manifest.files.values())
    facts = {"bundle": str(arguments.output), "build_key": bundle.manifest.build_key, "num_bytes": num_bytes}
    if arguments.as_json:
        write_json(facts)
    else:
        write(f"{arguments.output}: {num_bytes / 2**20:.1f} MiB\n")
    return 0

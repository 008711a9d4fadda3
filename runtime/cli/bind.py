"""`nemodiff bind`: attach a checkpoint's weights to engines that were compiled from a geometry."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nemodiff_trt.errors import InvalidInputError
from nemodiff_trt.runtime.cli.options import AsJson, BundleDir
from nemodiff_trt.vocabulary import Precision, Role, Target

if TYPE_CHECKING:
    from nemodiff_trt.bundle import Manifest


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
    calibration: Annotated[
        Path | None, typer.Option("--calibration", metavar="FILE", help="For quantised engines, as in build_engines.")
    ] = None
    as_json: AsJson = False


def bind(arguments: BindArguments) -> int:
    """Write a new bundle: the engines of --bundle with weights and tokenizer of --checkpoint.

    Engines that hold scales of one checkpoint are compiled again, by `build_engines` with the options of the bundle.
    """
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    from nemodiff_trt.bundle import Bundle
    from nemodiff_trt.bundle.bind import bind_checkpoint
    from nemodiff_trt.checkpoint import resolve_checkpoint
    from nemodiff_trt.runtime.cli.output import notes, write, write_json

    manifest = Bundle.open(arguments.bundle, verify=False).manifest
    if manifest.has_baked_scales:
        return _compile_again(arguments, manifest)
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
            calibration=arguments.calibration,
            on_bytes=lambda size: bar.update(task, completed=size),
        )
    num_bytes = sum(entry.num_bytes for entry in bundle.manifest.files.values())
    facts = {"bundle": str(arguments.output), "build_key": bundle.manifest.build_key, "num_bytes": num_bytes}
    if arguments.as_json:
        write_json(facts)
    else:
        write(f"{arguments.output}: {num_bytes / 2**20:.1f} MiB\n")
    return 0


def build_command(arguments: BindArguments, manifest: Manifest, recipe: Path) -> list[str]:
    """Command line that builds the bundle of `manifest` again, for a checkpoint and with the recipe file `recipe`."""
    facts, limits = manifest.quantization, manifest.limits
    assert facts is not None, "only quantised engines hold scales"
    has_draft = Role.DRAFT in manifest.roles
    if has_draft and manifest.adapter is not None and not arguments.without_adapter:
        _require_adapter(arguments.checkpoint)
    options: dict[str, object] = {
        "checkpoint": arguments.checkpoint,
        "target": manifest.target,
        "output": arguments.output,
        "modes": ",".join(manifest.modes),
        "precision": manifest.precision,
        "sm": ",".join(map(str, manifest.sms)) if manifest.target is Target.TENSORRT_RTX else None,
        "block-length": limits.block_length,
        "max-batch-size": limits.max_batch_size,
        "max-seq-len": limits.max_seq_len,
        "prefill-chunk": limits.prefill_chunk,
        "draft-adapter": "low_rank" if manifest.adapter is not None else "none",
        "recipe": recipe,
        "calibration": arguments.calibration,
    }
    if facts.draft_recipe != facts.recipe:
        options["draft-precision"] = facts.draft_recipe.format or Precision.BF16
    given = [text for name, value in options.items() if value is not None for text in (f"--{name}", str(value))]
    switches = [f"--{name}" for name, is_on in (("sampling", manifest.keep_logits), ("force", arguments.force)) if is_on]
    return [sys.executable, "-m", "nemodiff_trt.build_engines", *given, *switches]


def _compile_again(arguments: BindArguments, manifest: Manifest) -> int:
    """Run `build_engines`, which the runtime does not import: it may not even be installed with its compiler."""
    import yaml

    assert manifest.quantization is not None, "only quantised engines hold scales"
    with tempfile.TemporaryDirectory() as folder:
        recipe = Path(folder) / "recipe.yaml"
        content = json.dumps(manifest.quantization.recipe.to_dict())
        recipe.write_text(yaml.safe_dump(json.loads(content)), encoding="utf-8")
        command = build_command(arguments, manifest, recipe) + (["--json"] if arguments.as_json else [])
        return subprocess.run(command, check=False).returncode


def _require_adapter(checkpoint_dir: str) -> None:
    from nemodiff_trt.checkpoint import Checkpoint, resolve_checkpoint

    if Checkpoint.open(resolve_checkpoint(checkpoint_dir)).adapter is None:
        allowed = "a checkpoint with linear_spec_lora/, or --without-adapter to draft with its base weights"
        raise InvalidInputError("draft adapter", None, allowed)

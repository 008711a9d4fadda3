"""`nemodiff export-hf`: hand the autoregressive mode to other servers as a Ministral3 checkpoint."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nemodiff_trt.errors import InvalidInputError
from nemodiff_trt.runtime.cli.options import AsJson
from nemodiff_trt.vocabulary import LinearFormat

if TYPE_CHECKING:
    from nemodiff_trt.checkpoint import Checkpoint
    from nemodiff_trt.hf_export import ExportSource, LayerQuantization

_QUANTIZING = ("precision", "recipe", "calibration")


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportArguments:
    """Options of the command, in the order of its help."""

    checkpoint: Annotated[
        str | None,
        typer.Option("--checkpoint", metavar="DIR", help="Checkpoint folder, or nemodiff-tiny."),
    ] = None
    bundle: Annotated[
        Path | None, typer.Option("--bundle", metavar="DIR", help="A bundle with unquantised shared weights, in place of it.")
    ] = None
    output: Annotated[Path, typer.Option("--output", metavar="DIR", help="Folder of the exported checkpoint.")]
    dtype: Annotated[
        str | None, typer.Option("--dtype", metavar="T", help="float32, float16 or bfloat16. Default: as in the source.")
    ] = None
    precision: Annotated[
        str | None, typer.Option("--precision", metavar="P", help="fp8 or nvfp4 quantises the linear layers as ModelOpt does.")
    ] = None
    recipe: Annotated[
        Path | None, typer.Option("--recipe", metavar="F", help="YAML file with the formats of single layers, as in a build.")
    ] = None
    calibration: Annotated[
        Path | None,
        typer.Option("--calibration", metavar="F", help="Prompts, or calibration.json of a bundle, as in a build."),
    ] = None
    force: Annotated[bool, typer.Option("--force", help="Replace an exported checkpoint once the new one is complete.")] = False
    as_json: AsJson = False


def export(arguments: ExportArguments) -> int:
    """Write the autoregressive mode as a Ministral3 checkpoint for transformers, TensorRT-LLM, vLLM and SGLang."""
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    from nemodiff_trt.checkpoint.ministral3 import ARCHITECTURE
    from nemodiff_trt.hf_export import export_hf
    from nemodiff_trt.runtime.cli.output import notes, write, write_json

    source, quantization = _source(arguments)
    console = notes()
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("weights", total=None)
        report = export_hf(
            source,
            arguments.output,
            quantization=quantization,
            dtype=arguments.dtype,
            force=arguments.force,
            on_bytes=lambda size: bar.update(task, completed=size),
        )
    num_bytes = sum(report.files.values())
    facts = {
        "output": str(arguments.output),
        "architecture": ARCHITECTURE,
        "dtype": report.dtype,
        "num_tensors": report.num_tensors,
        "num_quantized": report.num_quantized,
        "num_bytes": num_bytes,
        "files": report.files,
    }
    if arguments.as_json:
        write_json(facts)
    else:
        write(f"{arguments.output}: {ARCHITECTURE}, {report.num_tensors} tensors, {num_bytes / 2**20:.1f} MiB\n")
    return 0


def _source(arguments: ExportArguments) -> tuple[ExportSource, LayerQuantization | None]:
    from nemodiff_trt.bundle import Bundle
    from nemodiff_trt.checkpoint import Checkpoint, resolve_checkpoint
    from nemodiff_trt.hf_export import ExportSource

    if (arguments.checkpoint is None) == (arguments.bundle is None):
        raise InvalidInputError("checkpoint", arguments.checkpoint, "either a checkpoint or a bundle")
    if arguments.bundle is not None:
        for name in _QUANTIZING:
            if getattr(arguments, name) is not None:
                raise InvalidInputError(name, str(getattr(arguments, name)), "nothing for a bundle; give its checkpoint")
        return ExportSource.from_bundle(Bundle.open(arguments.bundle)), None
    checkpoint = Checkpoint.open(resolve_checkpoint(arguments.checkpoint or ""))
    return ExportSource.from_checkpoint(checkpoint), _quantization(arguments, checkpoint)


def _quantization(arguments: ExportArguments, checkpoint: Checkpoint) -> LayerQuantization | None:
    """Formats and ranges of a quantised export."""
    from nemodiff_trt.hf_export import LayerQuantization
    from nemodiff_trt.options import CompileOptions
    from nemodiff_trt.quantization.ranges import find_ranges
    from nemodiff_trt.quantization.recipe import Recipe

    if all(getattr(arguments, name) is None for name in _QUANTIZING):
        return None
    formats = {str(form): form for form in LinearFormat}
    if arguments.precision is not None and arguments.precision not in formats:
        raise InvalidInputError("precision", arguments.precision, f"{', '.join(formats)}; leave it out to keep the weights")
    default = formats[arguments.precision] if arguments.precision else None
    recipe = Recipe.from_file(arguments.recipe, default) if arguments.recipe else Recipe(default)
    # As in a build with nothing said about lengths.
    limits = CompileOptions(checkpoint=arguments.checkpoint).limits
    statistics = find_ranges(checkpoint, arguments.calibration, limits, recipe.activations)
    return LayerQuantization(recipe, statistics.input_amax)

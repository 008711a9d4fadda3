"""`nemodiff triton-repo`: a model repository for the Triton Inference Server."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from nemodiff_trt.errors import InvalidInputError
from nemodiff_trt.runtime.cli.options import AsJson, BundleDir, NumThreads

BOTH = "both"


@dataclass(frozen=True, slots=True, kw_only=True)
class TritonRepoArguments:
    """Options of the command, in the order of its help."""

    bundle: BundleDir
    output: Annotated[Path, typer.Option("--output", metavar="REPO", help="Folder of the model repository.")]
    name: Annotated[str, typer.Option("--name", metavar="NAME", help="Name of the model.")] = "nemodiff"
    variant: Annotated[
        str,
        typer.Option(
            "--variant",
            metavar="V",
            help="text, tokens (token ids in and out, no tokenizer), or both: NAME and NAME_tokens, each with its own engine.",
        ),
    ] = "text"
    max_active: Annotated[
        int | None, typer.Option("--max-active", metavar="N", help="Requests decoded at a time. Default: the built maximum.")
    ] = None
    max_waiting: Annotated[
        int | None, typer.Option("--max-waiting", metavar="N", help="Requests that may wait; one more is refused as busy.")
    ] = 4096
    prefix_rows: Annotated[
        int, typer.Option("--prefix-rows", metavar="N", help="Finished requests kept for prompts that begin like them.")
    ] = 4
    num_threads: NumThreads = None
    warm_up: Annotated[bool, typer.Option("--warm-up/--no-warm-up", help="Run every mode before the model is ready.")] = True
    link: Annotated[
        bool, typer.Option("--link", help="Refer to the bundle where it is, rather than copy it into the repository.")
    ] = False
    force: Annotated[bool, typer.Option("--force", help="Replace an existing model repository of this command.")] = False
    as_json: AsJson = False


def triton_repo(arguments: TritonRepoArguments) -> None:
    """Write a model repository that the Triton Inference Server can load (docs/triton.md)."""
    from nemodiff_trt.bundle import Bundle
    from nemodiff_trt.runtime.cli.output import write, write_json
    from nemodiff_trt.runtime.engine import EngineOptions
    from nemodiff_trt.runtime.triton_repository.settings import ServingSettings
    from nemodiff_trt.runtime.triton_repository.variant import Variant
    from nemodiff_trt.runtime.triton_repository.write_repository import RepositoryLayout, models_of, write_repository

    if arguments.variant not in (*Variant, BOTH):
        raise InvalidInputError("variant", arguments.variant, f"{' or '.join(Variant)} or {BOTH}")
    variants = tuple(Variant) if arguments.variant == BOTH else (Variant(arguments.variant),)
    bundle = Bundle.open(arguments.bundle)
    _check_limits(arguments, bundle.manifest.limits.max_batch_size)
    engine = EngineOptions(
        max_active=arguments.max_active, max_waiting=arguments.max_waiting, prefix_rows=arguments.prefix_rows
    )
    settings = ServingSettings(engine=engine, num_threads=arguments.num_threads, warm_up=arguments.warm_up)
    models = models_of(arguments.name, variants, settings, bundle)
    write_repository(bundle, arguments.output, RepositoryLayout(models, arguments.link), arguments.force)
    facts = {
        "repository": str(arguments.output),
        "models": list(models),
        "target": str(bundle.manifest.target),
        "modes": [str(mode) for mode in bundle.manifest.modes],
        "build_key": bundle.manifest.build_key,
        "is_linked": arguments.link,
    }
    if arguments.as_json:
        write_json(facts)
    else:
        write(f"{arguments.output}: {', '.join(models)}\ntritonserver --model-repository={arguments.output}\n")


def _check_limits(arguments: TritonRepoArguments, max_batch_size: int) -> None:
    """What the server would find out only when it loads the model."""
    if arguments.max_active is not None and not 1 <= arguments.max_active <= max_batch_size:
        raise InvalidInputError("max_active", arguments.max_active, f"1 to {max_batch_size}, the built maximum")
    if arguments.num_threads is not None and arguments.num_threads < 1:
        raise InvalidInputError("num_threads", arguments.num_threads, "an integer of at least 1")

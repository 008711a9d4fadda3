"""`build_engines`: the command line, made from the fields of `CompileOptions`."""

from __future__ import annotations

import dataclasses
import inspect
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from nemodiff_trt.command_line import run_app
from nemodiff_trt.errors import InvalidInputError
from nemodiff_trt.options import CompileOptions
from nemodiff_trt.vocabulary import Mode

if TYPE_CHECKING:
    from nemodiff_trt.bundle import Bundle

PROGRAM = "build_engines"
_REQUIRED = ("target", "output")
# Given as one text, separated by commas.
_LISTS = ("modes", "sm")
# Off unless asked for, so that nobody has to switch them off.
_SWITCHES = ("force", "strict")


def main() -> None:
    """Entry point of the `build_engines` program."""
    sys.exit(run_app(build_app(), PROGRAM, sys.argv[1:]))


def build_app() -> typer.Typer:
    """The application: one command whose options are the fields of `CompileOptions`, and `--json`."""

    def command(**values: Any) -> None:
        as_json = values.pop("json")
        _build(_options(values), as_json)

    parameters = [_parameter(field) for field in dataclasses.fields(CompileOptions)]
    json_option = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output.")]
    parameters.append(inspect.Parameter("json", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=json_option))
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    app = typer.Typer(add_completion=False, rich_markup_mode=None)
    app.command(help="Compile a checkpoint into a bundle of per-mode engines.")(command)
    return app


def option_name(field: str) -> str:
    """Long option of a field."""
    return f"--{field.replace('_', '-')}"


def _parameter(field: dataclasses.Field[Any]) -> inspect.Parameter:
    """The field as a parameter that Typer turns into an option."""
    kind = get_type_hints(CompileOptions)[field.name]
    default = field.default
    if field.name in _LISTS:
        kind, default = str, ",".join(map(str, field.default))  # type: ignore[arg-type]
    flags = [option_name(field.name)] if kind is not bool else [f"{option_name(field.name)}/--no-{field.name}"]
    if field.name in _SWITCHES:
        flags = [option_name(field.name)]
    annotation: Any = Annotated[kind, typer.Option(*flags, help=field.metadata["help"])]
    if field.name in _REQUIRED:
        default = inspect.Parameter.empty
    return inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _options(values: dict[str, Any]) -> CompileOptions:
    """Check all values, naming fields as the user wrote them.

    Raises:
        InvalidInputError: see `CompileOptions`.
    """
    try:
        return CompileOptions(**{**values, "modes": _modes(values["modes"]), "sm": _sms(values["sm"])})
    except InvalidInputError as error:
        raise _as_option(error) from error


def _modes(text: str) -> tuple[Mode, ...]:
    try:
        return tuple(Mode(name.strip()) for name in text.split(",") if name.strip())
    except ValueError as error:
        raise InvalidInputError("modes", text, f"{', '.join(Mode)}, separated by commas") from error


def _sms(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(number) for number in text.split(",") if number.strip())
    except ValueError as error:
        raise InvalidInputError("sm", text, "compute capabilities such as 120, separated by commas") from error


def _as_option(error: InvalidInputError) -> InvalidInputError:
    fields = {field.name for field in dataclasses.fields(CompileOptions)}
    return InvalidInputError(option_name(error.field), error.value, error.allowed) if error.field in fields else error


def _build(options: CompileOptions, as_json: bool) -> None:
    from nemodiff_trt.build_engines.compile import compile_bundle
    from nemodiff_trt.build_engines.progress import ConsoleListener

    try:
        with ConsoleListener() as listener:
            bundle = compile_bundle(options, listener)
    except InvalidInputError as error:
        raise _as_option(error) from error
    summary = _summary(bundle, options.output)
    if as_json:
        print(json.dumps(summary))
    else:
        size = sum(summary["report"]["file_bytes"].values()) / 2**20
        print(
            f"{options.output}: {', '.join(summary['modes'])} for {summary['target']} in {summary['precision']}, {size:.1f} MiB"
        )


def _summary(bundle: Bundle, output: Path) -> dict[str, Any]:
    manifest = bundle.manifest
    return {
        "bundle": str(output),
        "build_key": manifest.build_key,
        "target": manifest.target,
        "precision": manifest.precision,
        "modes": list(manifest.modes),
        "roles": {role: engine.file for role, engine in manifest.roles.items()},
        "limits": {**dataclasses.asdict(manifest.limits), "cache_capacity": manifest.limits.cache_capacity},
        "adapter": dataclasses.asdict(manifest.adapter) if manifest.adapter else None,
        "tool_versions": manifest.tool_versions,
        "report": bundle.report(),
    }

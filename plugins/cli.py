"""Commands about the operators. Triton is loaded by the ones that need it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from nemodiff_trt.errors import InvalidInputError, NemodiffError

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON on standard output and nothing else there.")]


def build_app() -> typer.Typer:
    """A fresh application."""
    app = typer.Typer(
        name="nemodiff_trt.plugins",
        help="Operators of a decoding step: how they are realised, and their kernels as machine code.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
    )
    app.command("list")(list_operators)
    app.command("compile")(compile_command)
    return app


def list_operators(as_json: AsJson = False) -> None:
    """Show every operator and how each target realises it."""
    from nemodiff_trt.plugins.realisations import COLUMNS, table

    entries = table()
    if as_json:
        _write_json({"operators": entries, "columns": COLUMNS})
        return
    from rich.console import Console
    from rich.table import Column, Table

    shown = Table(Column("operator", no_wrap=True), *COLUMNS)
    for entry in entries:
        targets = entry["targets"]
        assert isinstance(targets, dict)
        shown.add_row(str(entry["operator"]), *(targets[column] for column in COLUMNS))
    Console(highlight=False).print(shown)


def compile_command(
    output: Annotated[Path, typer.Option("--output", metavar="DIR", help="Folder for cubins, PTX and the report.")],
    sm: Annotated[str, typer.Option("--sm", metavar="LIST", help="Compute capabilities without the dot.")] = "90,100,120,121",
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 1 on any warning, such as a spill.")] = False,
    as_json: AsJson = False,
) -> None:
    """Compile the Triton kernels of all operators, with or without a GPU, and report their resources."""
    from nemodiff_trt.plugins.kernels import has_triton

    sms = parse_sms(sm)
    if not has_triton():
        raise NemodiffError("triton is not installed: pip install 'nemodiff_trt[kernels]'")
    from nemodiff_trt.plugins.compile_kernels import compile_all, triton_forms

    report = compile_all(triton_forms(), sms, output)
    if as_json:
        _write_json(report)
    else:
        _print_report(report)
    if strict and report["warnings"]:
        raise NemodiffError(f"{len(report['warnings'])} warnings, the first: {report['warnings'][0]}")


def parse_sms(text: str) -> tuple[int, ...]:
    """Compute capabilities from a list such as "90,120", each once.

    Raises:
        InvalidInputError: one of them is not known.
    """
    from nemodiff_trt.plugins.gpus import GPUS

    allowed = f"some of {','.join(map(str, GPUS))}"
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) in GPUS for part in parts):
        raise InvalidInputError("--sm", text, allowed)
    return tuple(dict.fromkeys(int(part) for part in parts))


def _print_report(report: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    kernels = Table(
        "kernel", "SM", "registers", "spills", "shared", "warps", "global loads", "bytes a program", "", title="kernels"
    )
    for kernel in report["kernels"]:
        loads = " ".join(f"{count}x{bits}" for bits, count in kernel["global_loads"].items()) + " bit"
        spills = kernel["spill_loads"] + kernel["spill_stores"]
        numbers = (kernel["sm"], kernel["registers"], spills, kernel["shared_bytes"], kernel["num_warps"])
        loaded = kernel["loaded_bytes_per_program"]
        cached = "found" if kernel["is_cached"] else "compiled"
        kernels.add_row(kernel["name"], *map(str, numbers), loads, "loop" if loaded is None else str(loaded), cached)
    console.print(kernels)
    operators = Table("operator", "shape", "bytes moved", "of minimum", "predicted, no measurement", title="operators")
    for figures in report["operators"]:
        times = ", ".join(f"{entry['gpu']} {entry['microseconds']:.2g} us" for entry in figures["predictions"].values())
        moved = f"{figures['moved_bytes']:,}"
        operators.add_row(figures["operator"], figures["shape"], moved, f"{figures['ratio']:.4f}", times)
    console.print(operators)
    for text in report["warnings"]:
        console.print(f"warning: {text}", style="yellow")


def _write_json(content: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(content, allow_nan=False) + "\n")

"""The `nemodiff` application: its commands and nothing else."""

from __future__ import annotations

import typer

from nemodiff_trt.command_line import dataclass_command
from nemodiff_trt.runtime.cli.batch import BatchArguments, batch
from nemodiff_trt.runtime.cli.bench import BenchArguments, bench
from nemodiff_trt.runtime.cli.bind import BindArguments, bind
from nemodiff_trt.runtime.cli.calibrate import CalibrateArguments, calibrate
from nemodiff_trt.runtime.cli.chat import ChatArguments, chat
from nemodiff_trt.runtime.cli.check import CheckArguments, check
from nemodiff_trt.runtime.cli.export_hf import ExportArguments, export
from nemodiff_trt.runtime.cli.generate import GenerateArguments, generate
from nemodiff_trt.runtime.cli.inspect import inspect
from nemodiff_trt.runtime.cli.serve import ServeArguments, serve
from nemodiff_trt.runtime.cli.simulate import SimulateArguments, simulate
from nemodiff_trt.runtime.cli.sol import SolArguments, sol
from nemodiff_trt.runtime.cli.train import train
from nemodiff_trt.runtime.cli.triton_repo import TritonRepoArguments, triton_repo


def build_app() -> typer.Typer:
    """A fresh application; nothing but Typer is loaded by making it."""
    app = typer.Typer(
        name="nemodiff",
        help="Run Nemotron-Labs-Diffusion bundles: autoregressive, block diffusion, self-speculation.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
    )
    app.command("generate")(dataclass_command("generate", GenerateArguments, generate))
    app.command("batch")(dataclass_command("batch", BatchArguments, batch))
    app.command("chat")(dataclass_command("chat", ChatArguments, chat))
    app.command("serve")(dataclass_command("serve", ServeArguments, serve))
    app.command("bench")(dataclass_command("bench", BenchArguments, bench))
    app.command("bind")(dataclass_command("bind", BindArguments, bind))
    app.command("calibrate")(dataclass_command("calibrate", CalibrateArguments, calibrate))
    app.command("simulate")(dataclass_command("simulate", SimulateArguments, simulate))
    app.command("export-hf")(dataclass_command("export-hf", ExportArguments, export))
    app.command("inspect")(inspect)
    app.command("check")(dataclass_command("check", CheckArguments, check))
    app.command("sol")(dataclass_command("sol", SolArguments, sol))
    app.command("triton-repo")(dataclass_command("triton_repo", TritonRepoArguments, triton_repo))
    # The arguments belong to the training commands, which parse them (and --help) once they are loaded.
    app.command(
        "train",
        context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
    )(train)
    return app

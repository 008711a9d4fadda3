"""`nemodiff train`: hands over to the training commands."""

from __future__ import annotations

import typer


def train(context: typer.Context) -> int:
    """Train a small checkpoint and its draft adapter on generated problems."""
    from nemodiff_trt.training.cli import app

    command = typer.main.get_command(app)
    result = command.main(args=context.args or ["--help"], prog_name="nemodiff train", standalone_mode=False)
    return result if isinstance(result, int) else 0

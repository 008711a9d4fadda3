"""`nemodiff`: the command line of the runtime. One file a command; a command loads what it needs when it runs."""

from __future__ import annotations

import sys


def main() -> None:
    """Entry point of the `nemodiff` program."""
    from nemodiff_trt.command_line import run_app
    from nemodiff_trt.runtime.cli.app import build_app

    sys.exit(run_app(build_app(), "nemodiff", sys.argv[1:]))

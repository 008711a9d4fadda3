"""`python -m nemodiff_trt.plugins`: `list` the operators, `compile` their kernels."""

from __future__ import annotations

import sys


def main() -> None:
    """Entry point."""
    from nemodiff_trt.command_line import run_app
    from nemodiff_trt.plugins.cli import build_app

    sys.exit(run_app(build_app(), "nemodiff_trt.plugins", sys.argv[1:]))


if __name__ == "__main__":
    main()

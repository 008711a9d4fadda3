"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

DEFAULT_MODE = "self_speculation"
DEFAULT_MAX_NEW_TOKENS = 256

BundleDir = Annotated[Path, typer.Option("--bundle", metavar="DIR", help="Folder written by build_engines.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON on standard output and nothing else there.")]
NumThreads = Annotated[
    int | None, typer.Option("--num-threads", metavar="N", help="CPU threads of a step. Default: all CPUs of the process.")
]
Verify = Annotated[bool, typer.Option("--verify/--no-verify", help="Compare the checksum of every file of the bundle first.")]
MaxNewTokens = Annotated[int, typer.Option("--max-new-tokens", metavar="N", help="Limit of an answer, in tokens.")]
BlockLength = Annotated[
    int | None, typer.Option("--block-length", metavar="B", help="Tokens of a block. Default: the built maximum.")
]
Threshold = Annotated[
    float | None,
    typer.Option(
        "--threshold",
        metavar="X",
        help="Confidence from 0 to 1 that fixes a masked token: 0.9 in diffusion; in self_speculation 0 drafts in one pass.",
    ),
]
ModeName = Annotated[str, typer.Option("--mode", metavar="M", help="ar, diffusion, self_speculation, quadratic or auto.")]

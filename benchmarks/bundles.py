"""Build bundles through the command line, as a user would, and what that costs."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

# ru_maxrss is in KiB on Linux.
_RSS_UNIT_BYTES = 1024


@dataclass(frozen=True)
class BuildCost:
    """Wall time and peak resident memory of one `build_engines` process."""

    seconds: float
    peak_bytes: int


def build(
    checkpoint: str,
    output: Path,
    *,
    max_seq_len: int,
    block_length: int,
    prefill_chunk: int = 256,
    max_batch_size: int = 8,
    sampling: bool = False,
) -> BuildCost:
    """Compile `checkpoint` into `output`.

    Raises:
        RuntimeError: the build failed; the message is its own.
    """
    options = {
        "checkpoint": checkpoint,
        "target": "onnxruntime",
        "output": str(output),
        "max-seq-len": str(max_seq_len),
        "block-length": str(block_length),
        "prefill-chunk": str(min(prefill_chunk, max_seq_len)),
        "max-batch-size": str(max_batch_size),
    }
    arguments = [text for name, value in options.items() for text in (f"--{name}", value)]
    arguments += ["--sampling"] if sampling else []
    with tempfile.TemporaryFile() as errors:
        begin = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, "-m", "nemodiff_trt.build_engines", *arguments, "--json"], stdout=subprocess.DEVNULL, stderr=errors
        )
        # wait4 gives the usage of this one process; usage of all children would include earlier builds.
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        seconds = time.perf_counter() - begin
        if process.returncode:
            errors.seek(0)
            raise RuntimeError(f"build failed: {errors.read().decode(errors='replace').strip()}")
    return BuildCost(seconds, usage.ru_maxrss * _RSS_UNIT_BYTES)

"""Times that can be compared: cases take turns, warm-up is left out, medians are reported; and on what they were taken."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

VERSIONS_OF = ("nemodiff_trt", "torch", "onnx", "onnxruntime", "transformers", "numpy")
_BANDWIDTH_BYTES = 1 << 28


def interleaved(
    cases: Mapping[str, Callable[[], object]],
    num_repeats: int,
    num_warmup: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds of every repeat of every case. Each round runs all cases once, so that a slow phase of the machine hits all.

    `clock` is in seconds: `time.process_time` counts what other programs on the machine hardly change.
    """
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for repeat in range(num_warmup + num_repeats):
        for name, run in cases.items():
            begin = clock()
            run()
            if repeat >= num_warmup:
                seconds[name].append(clock() - begin)
    return seconds


def median_ms(seconds: list[float]) -> float:
    """Median of seconds, in milliseconds."""
    return statistics.median(seconds) * 1e3


def median_ratio(numerators: list[float], denominators: list[float]) -> float:
    """Median over the rounds of the ratio within one round."""
    return statistics.median(over / under for over, under in zip(numerators, denominators, strict=True))


def hardware(num_threads: int) -> dict[str, Any]:
    """Processor, memory and how fast one thread reads it."""
    return {
        "cpu": _cpu_name(),
        "cpus": len(os.sched_getaffinity(0)),
        "threads_used": num_threads,
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": platform.platform(),
        "read_gb_per_s_one_thread": round(_read_bandwidth(), 1),
    }


def versions() -> dict[str, str]:
    """Of Python and of what is installed of the packages that a number may depend on."""
    installed = {distribution.name for distribution in metadata.distributions()}
    return {
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in VERSIONS_OF if name in installed},
    }


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor())


def _read_bandwidth() -> float:
    """GB/s of summing more bytes than caches hold; the best of a few, since anything else on the machine only slows it."""
    data = np.ones(_BANDWIDTH_BYTES // 8)
    seconds = interleaved({"read": data.sum}, num_repeats=5)["read"]
    return data.nbytes / min(seconds) / 1e9

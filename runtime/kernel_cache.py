"""Kernels that TensorRT-RTX compiled on this machine, kept in a file from one run to the next.

Plans for RTX GPUs are finished where they run: the first step of a shape compiles its kernels. The file is tied to GPU, driver
and version, which TensorRT-RTX checks itself. It only saves time: one that cannot be used is replaced, and the reason logged.
"""

from __future__ import annotations

import contextlib
import logging
import os
from pathlib import Path

from nemodiff_trt.errors import BundleError
from nemodiff_trt.runtime.tensorrt_api import RtxRuntimeConfig, RuntimeCache

_logger = logging.getLogger(__name__)


def kernel_cache_file(bundle: Path) -> Path:
    """Default place: beside the bundle, in which nothing may be added."""
    bundle = bundle.absolute()
    return bundle.with_name(f"{bundle.name}.kernels")


class KernelCache:
    """One cache for all contexts of a session, and its file."""

    def __init__(self, path: Path | None) -> None:
        """`path` is read when the first context is made; None keeps the kernels in memory only."""
        self._path = path
        self._cache: RuntimeCache | None = None
        self._saved = b""

    def attach(self, config: RtxRuntimeConfig) -> None:
        """Let the context made with `config` use and fill the cache.

        Raises:
            BundleError: TensorRT-RTX does not take it.
        """
        if self._cache is None:
            self._cache = config.create_runtime_cache()
            self._load(self._cache)
        if not config.set_runtime_cache(self._cache):
            raise BundleError("TensorRT-RTX took no runtime cache")

    def save(self) -> None:
        """Write the file again if kernels were added since."""
        if self._path is None or self._cache is None:
            return
        content = bytes(self._cache.serialize())
        if content == self._saved:
            return
        # Remembered first: a folder that cannot be written to is reported once, not at every new shape.
        self._saved = content
        temporary = self._path.with_name(f"{self._path.name}.{os.getpid()}")
        try:
            temporary.write_bytes(content)
            temporary.replace(self._path)
        except OSError as error:
            _logger.warning("%s: compiled kernels cannot be kept (%s), the next start compiles them again", self._path, error)
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)

    def _load(self, cache: RuntimeCache) -> None:
        if self._path is None or not self._path.is_file():
            return
        try:
            content = self._path.read_bytes()
        except OSError as error:
            _logger.warning("%s: cannot be read (%s), kernels are compiled again", self._path, error)
            return
        if cache.deserialize(content):
            self._saved = content
        else:
            _logger.warning("%s: made by another GPU, driver or version, kernels are compiled again", self._path)

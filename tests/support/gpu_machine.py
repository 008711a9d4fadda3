"""A machine with a GPU, as far as a session can tell: the stand-in module on the stand-in device."""

from __future__ import annotations

from typing import Any, cast

import numpy as np

from nemodiff_trt.bundle import Bundle
from nemodiff_trt.runtime.session_tensorrt import TensorRTSession
from nemodiff_trt.runtime.tensorrt_api import Api
from nemodiff_trt.vocabulary import Role
from support.fake_tensorrt import FakeTensorRT
from support.host_device import HostDevice


class Machine:
    """A device, the module on it and sessions over them; see `FakeTensorRT` for `fail`."""

    def __init__(self, bundle: Bundle, fail: str = "", num_bytes: int = 2**32) -> None:
        self.bundle = bundle
        self.device = HostDevice(num_bytes)
        self.api = FakeTensorRT(bundle.manifest, self.device, fail)

    def open(self, **options: Any) -> TensorRTSession:
        return TensorRTSession.open(self.bundle, cast(Api, self.api), self.device, **options)

    @property
    def counts(self) -> dict[str, int]:
        """Calls of the module by name."""
        return dict(self.api.calls.counts)


def random_ids(batch: int, step: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(101, 400, (batch, step))


def prefilled(session: Any, batch: int, length: int = 12) -> Any:
    """Cache with `batch` rows of different length, filled with random tokens."""
    cache = session.create_cache(batch)
    session.run(Role.PREFILL, random_ids(batch, length), cache, np.full(batch, length - 1))
    cache.length[:] = length - 2 * np.arange(batch)
    return cache

"""A session of the host as one whose results stay where they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from nemodiff_trt.runtime.device_steps import DeviceStep, HostQueue, Work
from nemodiff_trt.runtime.kv_cache import KVCache
from nemodiff_trt.vocabulary import Role


class OnDevice:
    """Binds the steps of any session to tensors that stay, as an engine does. Counts what a captured cycle copies."""

    def __init__(self, session: Any) -> None:
        self._session = session
        self.queue = HostQueue()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def device_step(self, role: Role, step: int, cache: KVCache[Any]) -> DeviceStep:
        ids, token = (torch.zeros((cache.batch_size, step), dtype=torch.int64) for _ in range(2))
        length = torch.zeros(cache.batch_size, dtype=torch.int64)

        def launch() -> None:
            cache.length[:] = length.numpy()
            token.copy_(torch.from_numpy(self._session.run(role, ids.numpy(), cache).token))

        return DeviceStep(ids, length, token, launch, lambda: None)

    def capture(self, work: Work, steps: Sequence[DeviceStep]) -> Work:  # noqa: ARG002 - see `DeviceSession`
        return work

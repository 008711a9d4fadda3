"""Steps whose inputs and results stay where the engine runs: what a cycle without the host in between needs of a session."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from nemodiff_trt.config import ModelConfig
from nemodiff_trt.contract import Limits
from nemodiff_trt.runtime.kv_cache import KVCache
from nemodiff_trt.vocabulary import Role

Work = Callable[[], None]


@dataclass(frozen=True, slots=True)
class DeviceStep:
    """One shape of one role on one cache, at fixed addresses.

    `input_ids` int64 [B,S] and `cache_length` int64 [B] are what the next launch reads, `token` int64 [B,S] what it leaves.
    Steps of a session may share all three: they run one after the other. `launch` enqueues the engine; `check_capturable`
    says, after a first launch, why it cannot be part of a graph.
    """

    input_ids: Tensor
    cache_length: Tensor
    token: Tensor
    launch: Work
    check_capturable: Work


class WorkQueue(Protocol):
    """Runs work in the order in which it was enqueued. `cuda_device.Device` is one."""

    def zeros(self, num_bytes: int) -> Tensor:
        """Memory that steps can use, uint8."""
        ...

    def pinned(self, num_bytes: int) -> Tensor:
        """Memory of the host that `copy` can write to, uint8."""
        ...

    def copy(self, target: Tensor, source: Tensor) -> None: ...

    def enqueue(self, work: Work) -> None:
        """Run operations on tensors after all that was enqueued before."""
        ...

    def synchronize(self) -> None: ...


class DeviceSession(Protocol):
    """A session that can leave the results of a step where they are."""

    @property
    def model(self) -> ModelConfig: ...

    @property
    def limits(self) -> Limits: ...

    @property
    def queue(self) -> WorkQueue: ...

    def device_step(self, role: Role, step: int, cache: KVCache[Any]) -> DeviceStep:
        """Bind steps of `step` tokens of `role` on `cache`."""
        ...

    def capture(self, work: Work, steps: Sequence[DeviceStep]) -> Work:
        """`work`, which ran once and launches `steps`, as one launch where the session is meant to make one of it."""
        ...


class HostQueue:
    """The CPU: what is enqueued has run."""

    def zeros(self, num_bytes: int) -> Tensor:
        import torch

        return torch.zeros(num_bytes, dtype=torch.uint8)

    def pinned(self, num_bytes: int) -> Tensor:
        return self.zeros(num_bytes)

    def copy(self, target: Tensor, source: Tensor) -> None:
        target.copy_(source)

    def enqueue(self, work: Work) -> None:
        work()

    def synchronize(self) -> None:
        pass

"""A stand-in for a CUDA device on the CPU: aligned memory, a stream, and captures that hold on to what was enqueued."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

ALIGNMENT = 256


class HostDevice:
    """Runs what is enqueued at once; while it captures, it only takes notes, as a device does."""

    stream_handle = 0x5EED

    def __init__(self, num_bytes: int = 2**32) -> None:
        self.num_bytes = num_bytes
        self.allocated: list[int] = []
        self.pinned_bytes: list[int] = []
        self.num_captures = 0
        self.num_launches = 0
        self._notes: list[Callable[[], object]] | None = None

    @property
    def is_capturing(self) -> bool:
        return self._notes is not None

    def zeros(self, num_bytes: int) -> Tensor:
        assert not self.is_capturing, "no allocation while a graph is captured"
        if num_bytes > self.free_bytes():
            raise torch.OutOfMemoryError
        self.allocated.append(num_bytes)
        memory = torch.zeros(num_bytes + ALIGNMENT, dtype=torch.uint8)
        start = -memory.data_ptr() % ALIGNMENT
        return memory[start : start + num_bytes]

    def pinned(self, num_bytes: int) -> Tensor:
        assert not self.is_capturing, "no allocation while a graph is captured"
        self.pinned_bytes.append(num_bytes)
        return torch.zeros(num_bytes, dtype=torch.uint8)

    def copy(self, target: Tensor, source: Tensor) -> None:
        assert target.numel() == source.numel()
        self.enqueue(lambda: target.copy_(source))

    def enqueue(self, work: Callable[[], object]) -> None:
        """What an engine does instead of launching kernels."""
        if self._notes is not None:
            self._notes.append(work)
        else:
            self.num_launches += 1
            work()

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        self._notes = []
        try:
            work()
            notes = self._notes
        finally:
            self._notes = None
        self.num_captures += 1

        def replay() -> None:
            for note in notes:
                note()

        return replay

    def synchronize(self) -> None:
        assert not self.is_capturing, "a capture must not wait"

    def free_bytes(self) -> int:
        return self.num_bytes - sum(self.allocated)

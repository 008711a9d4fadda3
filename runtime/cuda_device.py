"""Memory, copies and graph capture on one CUDA device: all that a session needs of a GPU besides the engine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor


class Device(Protocol):
    """A device with one stream, on which everything is enqueued."""

    @property
    def stream_handle(self) -> int:
        """The `cudaStream_t`."""
        ...

    def zeros(self, num_bytes: int) -> Tensor:
        """Device memory, uint8, aligned to 256 bytes.

        Raises:
            torch.OutOfMemoryError: there is not enough.
        """
        ...

    def pinned(self, num_bytes: int) -> Tensor:
        """Zeroed, page-locked host memory, uint8: copies from and to it run on the stream."""
        ...

    def copy(self, target: Tensor, source: Tensor) -> None:
        """Enqueue a copy between tensors of one size, wherever they are."""
        ...

    def enqueue(self, work: Callable[[], None]) -> None:
        """Let operations of torch on device memory run on the stream."""
        ...

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        """Record what `work` enqueues, without running it; the result enqueues all of it at once."""
        ...

    def synchronize(self) -> None:
        """Wait until everything enqueued has run."""
        ...

    def free_bytes(self) -> int:
        """Device memory that can still be had."""
        ...


class CudaDevice:
    """The first visible CUDA device, through torch. TensorRT uses a thread's current device, which is that one by default."""

    def __init__(self) -> None:
        self._device = torch.device("cuda", 0)
        self._stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]

    @property
    def stream_handle(self) -> int:
        return int(self._stream.cuda_stream)

    def zeros(self, num_bytes: int) -> Tensor:
        # On our own stream, so that no other stream has to be waited for. Torch aligns to 512 bytes.
        with torch.cuda.stream(self._stream):
            return torch.zeros(num_bytes, dtype=torch.uint8, device=self._device)

    def pinned(self, num_bytes: int) -> Tensor:
        return torch.zeros(num_bytes, dtype=torch.uint8, pin_memory=True)

    def copy(self, target: Tensor, source: Tensor) -> None:
        with torch.cuda.stream(self._stream):
            target.copy_(source, non_blocking=True)

    def enqueue(self, work: Callable[[], None]) -> None:
        with torch.cuda.stream(self._stream):
            work()

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        graph = torch.cuda.CUDAGraph()
        # thread_local: other threads of the process may go on using the device meanwhile.
        with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
            work()

        def replay() -> None:
            with torch.cuda.stream(self._stream):
                graph.replay()

        return replay

    def synchronize(self) -> None:
        self._stream.synchronize()

    def free_bytes(self) -> int:
        free, _ = torch.cuda.mem_get_info(self._device)
        # What torch keeps of freed memory is free as well.
        return int(free + torch.cuda.memory_reserved(self._device) - torch.cuda.memory_allocated(self._device))

"""Who answers the shards: this process here; many through Ray in `ray_executor`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

from nemodiff_trt.runtime.batch.input_file import Shard
from nemodiff_trt.runtime.batch.job import WorkerSetup
from nemodiff_trt.runtime.batch.worker import ShardReport, ShardWorker


class Executor(Protocol):
    """Runs `ShardWorker.run` on every shard, each at least once, and reports them in any order.

    Raises:
        NemodiffError: a shard cannot be answered. Parts that were published stay.
    """

    def __call__(self, setup: WorkerSetup, shards: Sequence[Shard]) -> Iterator[ShardReport]: ...


def run_locally(setup: WorkerSetup, shards: Sequence[Shard]) -> Iterator[ShardReport]:
    """One worker, in this process."""
    if shards:
        yield from map(ShardWorker.open(setup).run, shards)

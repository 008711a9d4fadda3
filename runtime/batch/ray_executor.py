"""Many workers through Ray Data: shards are the rows of a dataset that is mapped by a pool of actors, one model each.

Ray Data restarts an actor whose process died and hands its shard out again: at least once, and without end, which is why
attempts are counted (`attempts`). A worker publishes a part by a rename and leaves a shard alone whose part is there, so the
answers are there exactly once.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import ray
import ray.data

from nemodiff_trt.errors import BatchError, InvalidInputError, NemodiffError
from nemodiff_trt.runtime.batch.input_file import Shard
from nemodiff_trt.runtime.batch.job import WorkerSetup
from nemodiff_trt.runtime.batch.parts import Totals
from nemodiff_trt.runtime.batch.worker import ShardReport, ShardWorker

# "local" starts a cluster on this machine that ends with the run.
LOCAL_ADDRESS = "local"
# Ray keeps a record of every block; beyond this many, neighbouring shards share one.
_MAX_BLOCKS = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class RayExecutor:
    """Workers on the nodes of a Ray cluster.

    Attributes:
        num_workers: worker processes.
        address: of the cluster, as `ray.init` takes it; `LOCAL_ADDRESS` for one on this machine alone.
        num_gpus: GPUs of a worker, or a share of one; 0 on a CPU.

    Raises:
        InvalidInputError: a field is out of range.
    """

    num_workers: int
    address: str = LOCAL_ADDRESS
    num_gpus: float = 0.0

    def __post_init__(self) -> None:
        if self.num_workers < 1:
            raise InvalidInputError("workers", self.num_workers, "an integer of at least 1")
        if not 0 <= self.num_gpus < float("inf"):
            raise InvalidInputError("gpus-per-worker", self.num_gpus, "a number of at least 0")

    def __call__(self, setup: WorkerSetup, shards: Sequence[Shard]) -> Iterator[ShardReport]:
        """See `Executor`."""
        if not shards:
            return
        num_cpus = setup.num_threads or 1
        self._connect(num_cpus)
        try:
            for row in self._mapped(setup, shards, num_cpus).iter_rows():
                if row["failure"]:
                    raise BatchError(row["failure"])
                totals = Totals(*(int(row[field.name]) for field in dataclasses.fields(Totals)))
                yield ShardReport(shard=row["shard"], totals=totals, seconds=row["seconds"], worker=row["worker"])
        except ray.exceptions.RayError as error:
            raise BatchError(f"Ray gave up: {_reason(error)}") from error
        finally:
            ray.shutdown()

    def _connect(self, num_cpus: int) -> None:
        own: dict[str, Any] = {}
        if self.address == LOCAL_ADDRESS:
            # A worker is worth so many, whatever this machine has: more of them than fit are slow, fewer would wait forever.
            own = {"num_cpus": self.num_workers * num_cpus, "include_dashboard": False}
        try:
            ray.init(address=self.address, logging_level=logging.ERROR, log_to_driver=False, **own)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise InvalidInputError("ray-address", self.address, f"the address of a Ray cluster ({_reason(error)})") from error

    def _mapped(self, setup: WorkerSetup, shards: Sequence[Shard], num_cpus: int) -> ray.data.Dataset:
        ray.data.DataContext.get_current().enable_progress_bars = False
        # The command tells how far it is itself.
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        rows = [dataclasses.asdict(shard) for shard in shards]
        return ray.data.from_items(rows, override_num_blocks=min(len(rows), _MAX_BLOCKS)).map(
            cast("Any", RayShardWorker),
            fn_constructor_args=(setup,),
            # One shard at a time: shards that wait at a busy worker would not be there for an idle one.
            compute=ray.data.ActorPoolStrategy(size=self.num_workers, max_tasks_in_flight_per_actor=1),
            num_cpus=num_cpus,
            num_gpus=self.num_gpus,
        )


class RayShardWorker:
    """A worker inside an actor. The bundle is opened with the first shard, so that what is wrong with it reaches the driver."""

    def __init__(self, setup: WorkerSetup) -> None:
        self._setup = setup
        self._worker: ShardWorker | None = None

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Report of one shard as plain values; `failure` is empty or says why there is none."""
        shard = Shard(**row)
        try:
            if self._worker is None:
                self._worker = ShardWorker.open(self._setup)
            report = self._worker.run(shard)
        except NemodiffError as error:
            # Exceptions lose their fields on their way through Ray.
            nothing = dataclasses.asdict(Totals())
            return {"shard": shard.index, **nothing, "seconds": 0.0, "worker": "", "failure": str(error)}
        own = {"shard": report.shard, "seconds": report.seconds, "worker": report.worker, "failure": ""}
        return own | dataclasses.asdict(report.totals)


def _reason(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__

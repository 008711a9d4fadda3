"""`nemodiff batch` on real Ray clusters, with processes that are killed. Needs the extra `ray`; run with -m ray."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nemodiff_trt.training.problems import held_out_problems
from support.bundles import build_bundle
from support.http_server import wait_until
from support.processes import descendants

cluster_utils = pytest.importorskip("ray.cluster_utils")
pytestmark = pytest.mark.ray

NUM_ROWS, SHARD_SIZE = 2000, 32
NUM_SHARDS = -(-NUM_ROWS // SHARD_SIZE)
# Stays the same whoever answers; times do not.
SAME = ("index", "id", "key", "text", "token_ids", "finish_reason", "mode")
# A machine that is busy with other things may take long to start Ray.
PATIENCE_S = 600.0
ENVIRONMENT = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0"}


class Batch:
    """Runs of the command on one input, each in a process of its own."""

    def __init__(self, bundle_dir: Path, folder: Path) -> None:
        self.input = folder / "rows.jsonl"
        self._bundle_dir = bundle_dir

    def write(self) -> None:
        rows = [
            {"id": number, "prompt": problem.prompt, "enable_thinking": problem.thinking}
            for number, problem in enumerate(held_out_problems(NUM_ROWS, seed=7))
        ]
        self.input.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def start(self, output: Path, *options: object) -> subprocess.Popen[str]:
        arguments = (
            "--bundle", self._bundle_dir, "--input", self.input, "--output", output, "--shard-size", SHARD_SIZE,
            "--max-new-tokens", 96, "--block-length", 16, "--token-ids", "--num-threads", 1, "--json", *options,
        )  # fmt: skip
        command = [sys.executable, "-c", "from nemodiff_trt.runtime.cli import main; main()", "batch"]
        command += [str(argument) for argument in arguments]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT)

    def finish(self, process: subprocess.Popen[str]) -> dict[str, Any]:
        out, err = process.communicate(timeout=PATIENCE_S)
        assert process.returncode == 0, err
        summary: dict[str, Any] = json.loads(out)
        return summary


@pytest.fixture(scope="module")
def batch(tmp_path_factory: pytest.TempPathFactory) -> Batch:
    folder = tmp_path_factory.mktemp("batch")
    limits = {"max_batch_size": 8, "max_seq_len": 512, "block_length": 16, "prefill_chunk": 128}
    made = Batch(build_bundle(Path("nemodiff-tiny"), folder / "tiny.bundle", **limits), folder)
    made.write()
    return made


@pytest.fixture(scope="module")
def expected(batch: Batch, tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Any, ...]]:
    """Answers of one process, without Ray."""
    output = tmp_path_factory.mktemp("local") / "out"
    summary = batch.finish(batch.start(output))
    print("one process:", summary)
    return answers_in(output)


@pytest.fixture
def output(tmp_path: Path) -> Iterator[Path]:
    return tmp_path / "out"


def answers_in(output: Path) -> list[tuple[Any, ...]]:
    rows = [json.loads(line) for line in (output / "answers.jsonl").read_bytes().splitlines()]
    return [tuple(tuple(row[name]) if name == "token_ids" else row[name] for name in SAME) for row in rows]


def num_parts(output: Path) -> int:
    return len(list(output.glob("part-*.jsonl")))


def workers_of(process: subprocess.Popen[str]) -> list[int]:
    return [pid for pid, command in descendants(process.pid).items() if command.startswith("ray::MapWorker")]


def test_a_killed_worker_costs_no_row_and_doubles_none(batch: Batch, expected: list[tuple[Any, ...]], output: Path) -> None:
    process = batch.start(output, "--backend", "ray", "--workers", 2)
    wait_until(lambda: num_parts(output) >= NUM_SHARDS // 3 or process.poll() is not None, PATIENCE_S)
    victim = workers_of(process)[0]
    os.kill(victim, signal.SIGKILL)
    summary = batch.finish(process)
    print("two workers, one killed:", victim, summary)
    assert [row[0] for row in expected] == list(range(NUM_ROWS))
    assert answers_in(output) == expected
    assert (summary["rows"], summary["answered_rows"], summary["bad_rows"]) == (NUM_ROWS, NUM_ROWS, 0)
    assert len(summary["workers"]) == 3, "the two, and the one that took the place of the killed one"


def test_a_killed_driver_is_taken_up_again(batch: Batch, expected: list[tuple[Any, ...]], output: Path) -> None:
    process = batch.start(output, "--backend", "ray", "--workers", 2)
    wait_until(lambda: num_parts(output) >= NUM_SHARDS // 3 or process.poll() is not None, PATIENCE_S)
    workers = workers_of(process)
    process.kill()
    process.communicate()
    # Ray ends what its driver has left; parts are counted once no worker can write another one.
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers), PATIENCE_S)
    reused = num_parts(output)
    assert 0 < reused < NUM_SHARDS
    summary = batch.finish(batch.start(output, "--backend", "ray", "--workers", 2))
    print("resumed:", summary)
    assert answers_in(output) == expected
    assert (summary["rows"], summary["reused_shards"]) == (NUM_ROWS, reused)


def test_a_lost_node_costs_no_row(batch: Batch, expected: list[tuple[Any, ...]], output: Path) -> None:
    """Two nodes of one worker each, on this machine; one of them goes without a word."""
    cluster = cluster_utils.Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        lost = cluster.add_node(num_cpus=1)
        process = batch.start(output, "--backend", "ray", "--workers", 2, "--ray-address", cluster.address)
        wait_until(lambda: num_parts(output) >= NUM_SHARDS // 3 or process.poll() is not None, PATIENCE_S)
        cluster.remove_node(lost, allow_graceful=False)
        summary = batch.finish(process)
    finally:
        cluster.shutdown()
    print("two nodes, one lost:", summary)
    assert answers_in(output) == expected
    assert (summary["rows"], summary["answered_rows"]) == (NUM_ROWS, NUM_ROWS)
    assert len(summary["workers"]) >= 2


def test_a_worker_that_cannot_go_on_ends_the_job_with_its_reason(batch: Batch, output: Path) -> None:
    process = batch.start(output, "--backend", "ray", "--workers", 1, "--max-active", 8)
    wait_until(lambda: num_parts(output) >= 1 or process.poll() is not None, PATIENCE_S)
    content = batch.input.read_bytes()
    batch.input.write_bytes(content.replace(b'"id"', b'"ID"'))
    out, err = process.communicate(timeout=PATIENCE_S)
    batch.input.write_bytes(content)
    assert (process.returncode, out) == (1, "")
    assert f"{batch.input} has changed since the job was started" in err.splitlines()[-1]

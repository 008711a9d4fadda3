"""What goes wrong around `nemodiff serve`: clients and servers that die, restarts under load, damaged bundles, odd bodies."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from http_clients import NAMES, OpenAIClient
from load_generator import DEFAULT_WISHES, Mix, Outcome, make_calls, run_closed, run_open
from load_report import expected_answers, judge
from serve_process import PROGRAM, ServeProcess

from nemodiff_trt.bundle import Bundle
from nemodiff_trt.runtime.engine import EngineOptions, TriModeEngine
from nemodiff_trt.runtime.open_session import open_session
from nemodiff_trt.tokenizer import Tokenizer
from support.bundles import build_bundle, copy_bundle
from support.http_server import wait_until

pytestmark = pytest.mark.slow
BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
OPTIONS = ("--num-threads", "1", "--max-waiting", "4096")
# A server tells thoughts apart from answers, and this process does not.
WISHES = {name: wish for name, wish in DEFAULT_WISHES.items() if "enable_thinking" not in wish}
MIX = Mix(wishes=WISHES, max_new_tokens=(30, 90), num_problems=(1, 1), cancelled=0.1, flawed=0.05)
SLOTS = 4
# Opens streams that nobody reads to the end, says so, and waits to be killed.
DOOMED = """
import asyncio, sys
sys.path.insert(0, {folder!r})
from http_clients import OpenAIClient
from load_generator import Call

async def one(client, number):
    call = Call(number=number, arrival_s=0, category="", wish="", prompt="a", options={{"mode": "ar", "ignore_eos": True, "max_new_tokens": 400}})
    async for piece in client.stream(call):
        print("begun", flush=True)
        await asyncio.sleep(600)

async def main():
    client = OpenAIClient({url!r})
    await asyncio.gather(*(one(client, number) for number in range({count})))

asyncio.run(main())
"""  # noqa: E501


@pytest.fixture(scope="module")
def bundle_dir(tiny_checkpoint_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundle") / "served.bundle"
    return build_bundle(tiny_checkpoint_dir, folder, max_seq_len=512, max_batch_size=SLOTS)


@pytest.fixture
def server(bundle_dir: Path) -> Iterator[ServeProcess]:
    with ServeProcess(bundle_dir, *OPTIONS) as running:
        yield running


@pytest.fixture(scope="module")
def engine(bundle_dir: Path) -> TriModeEngine:
    bundle = Bundle.open(bundle_dir)
    return TriModeEngine(open_session(bundle, 1), Tokenizer.from_dir(bundle.tokenizer_dir), EngineOptions(prefix_rows=0))


def load(url: str, num_calls: int, concurrency: int, seed: int) -> list[Outcome]:
    async def main() -> list[Outcome]:
        client = OpenAIClient(url)
        try:
            return await run_closed(client, make_calls(MIX, num_calls, seed), concurrency)
        finally:
            await client.close()

    return asyncio.run(main())


def wrong(outcomes: list[Outcome], engine: TriModeEngine) -> dict[int, str]:
    return judge(outcomes, expected_answers(engine, [outcome.call for outcome in outcomes]), NAMES).wrong


def all_free(server: ServeProcess) -> bool:
    return server.metric("nemodiff_free_slots") == SLOTS and server.metric("nemodiff_waiting_requests") == 0


def test_killed_clients_harm_nobody(server: ServeProcess, engine: TriModeEngine) -> None:
    script = DOOMED.format(folder=str(BENCHMARKS), url=server.url, count=SLOTS)
    doomed = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert doomed.stdout is not None
    assert doomed.stdout.readline() == "begun\n"
    found: list[Outcome] = []
    others = threading.Thread(target=lambda: found.extend(load(server.url, 60, 16, seed=1)))
    others.start()
    time.sleep(0.1)
    doomed.kill()
    doomed.communicate()
    others.join(timeout=120)
    assert len(found) == 60
    assert wrong(found, engine) == {}
    wait_until(lambda: all_free(server))
    assert server.metric('nemodiff_requests_total{reason="cancelled"}') > 0


def test_a_restart_under_load(bundle_dir: Path, engine: TriModeEngine) -> None:
    found: list[Outcome] = []
    with ServeProcess(bundle_dir, *OPTIONS) as first:
        url, port = first.url, first.port

        async def steady() -> list[Outcome]:
            client = OpenAIClient(url)
            try:
                return await run_open(client, make_calls(MIX, 200, seed=2, rate=20.0))
            finally:
                await client.close()

        others = threading.Thread(target=lambda: found.extend(asyncio.run(steady())))
        others.start()
        wait_until(lambda: first.metric("nemodiff_active_requests") > 0)
        time.sleep(1.0)
        # What has begun is finished; who comes now is told that there is no server.
        assert first.stop(signal.SIGTERM) == 0
    with ServeProcess(bundle_dir, *OPTIONS, port=port) as second:
        others.join(timeout=120)
        assert second.metric('nemodiff_requests_total{reason="length"}') > 0
        wait_until(lambda: all_free(second))
    lost = [outcome for outcome in found if outcome.broken]
    # None of these had got a piece of an answer.
    assert all(not outcome.text and "onnection" in (outcome.broken or "") for outcome in lost)
    assert wrong([outcome for outcome in found if not outcome.broken], engine) == {}
    assert len(lost) < 150


def test_a_killed_server_leaves_clear_errors_and_starts_again(bundle_dir: Path, engine: TriModeEngine) -> None:
    found: list[Outcome] = []
    with ServeProcess(bundle_dir, *OPTIONS) as first:
        port = first.port
        others = threading.Thread(target=lambda: found.extend(load(first.url, 40, 40, seed=3)))
        others.start()
        wait_until(lambda: first.metric("nemodiff_tokens_total") > 0)
        first.stop(signal.SIGKILL)
    others.join(timeout=60)
    assert len(found) == 40
    assert any(outcome.broken for outcome in found)
    with ServeProcess(bundle_dir, *OPTIONS, port=port) as second:
        assert wrong(load(second.url, 20, 8, seed=4), engine) == {}


def test_a_damaged_bundle_is_named_and_the_old_one_serves_on(
    server: ServeProcess, bundle_dir: Path, tmp_path: Path, engine: TriModeEngine
) -> None:
    damaged = copy_bundle(bundle_dir, tmp_path / "damaged")
    weights = damaged / "weights" / "shared.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    result = subprocess.run(
        [*PROGRAM, "serve", "--bundle", str(damaged), "--port", "0"], capture_output=True, text=True, check=False, timeout=60
    )
    assert result.returncode == 1
    assert "shared.safetensors" in result.stderr
    assert result.stderr.count("\n") == 1
    assert wrong(load(server.url, 20, 8, seed=5), engine) == {}


def test_odd_requests_by_the_description_of_the_api(server: ServeProcess, tmp_path: Path) -> None:
    pytest.importorskip("schemathesis")
    checks = "not_a_server_error,status_code_conformance,content_type_conformance"
    command = [Path(sys.executable).with_name("schemathesis"), "run", f"{server.url}/openapi.json", "--checks", checks]
    # It keeps notes in the working directory.
    result = subprocess.run(
        [*command, "-n", "60", "--seed", "1", "--no-color"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert result.returncode == 0, result.stdout
    wait_until(lambda: all_free(server))
    assert server.metric('nemodiff_http_requests_total{path="/v1/chat/completions",status="400"}') > 50

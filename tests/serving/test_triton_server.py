"""The real Triton Inference Server and its real clients. Needs `make triton-env` and the extra `triton`; run with -m triton."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from load_generator import Call, Mix, Outcome, make_calls, run_call, run_closed
from load_report import expected_answers, judge
from triton_server import DEFAULT_ENVIRONMENT, TritonServer, is_available, make_repository

from nemodiff_trt.bundle import Bundle
from nemodiff_trt.runtime.engine import TriModeEngine
from nemodiff_trt.runtime.open_session import open_session
from nemodiff_trt.tokenizer import Tokenizer
from support.bundles import build_bundle
from support.checkpoints import random_checkpoint, tiny_config

clients = pytest.importorskip("triton_clients")
grpc = pytest.importorskip("tritonclient.grpc")

ENVIRONMENT = Path(os.environ.get("TRITON_ENV", DEFAULT_ENVIRONMENT))
NUM_SLOTS = 8
pytestmark = [
    pytest.mark.triton,
    pytest.mark.skipif(not is_available(ENVIRONMENT), reason=f"{ENVIRONMENT} has no server: make triton-env"),
]
LONG = {"mode": "ar", "max_new_tokens": 1500, "ignore_eos": True}
BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def bundle_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With room for the prompts of the load generator, which a byte tokenizer makes long."""
    checkpoint = random_checkpoint(tmp_path_factory.mktemp("long"), tiny_config(max_position_embeddings=4096))
    limits = {"max_seq_len": 2048, "max_batch_size": NUM_SLOTS, "prefill_chunk": 256, "block_length": 32}
    return build_bundle(checkpoint, tmp_path_factory.mktemp("bundle") / "served", **limits)


@pytest.fixture(scope="module")
def make_engine(bundle_dir: Path) -> Callable[[], TriModeEngine]:
    bundle = Bundle.open(bundle_dir)
    session = open_session(bundle, num_threads=1)
    return lambda: TriModeEngine(session, Tokenizer.from_dir(bundle.tokenizer_dir))


@pytest.fixture(scope="module")
def server(bundle_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    repository = make_repository(
        bundle_dir, tmp_path_factory.mktemp("triton") / "repo", "--variant", "both", "--num-threads", 1
    )
    with TritonServer(repository, ENVIRONMENT, ("nemodiff", "nemodiff_tokens")) as running:
        yield running
        # After cancelled streams it would take 30 seconds to end by itself (docs/triton.md).
        running.kill()


@pytest.fixture
def idle(server: TritonServer) -> Iterator[TritonServer]:
    """The server, and after the test the promise that no slot leaked and nothing but refusals was logged."""
    yield server
    eventually(lambda: server.gauge("free_slots") == 2 * NUM_SLOTS and server.gauge("active_requests") == 0)
    assert server.gauge("waiting_requests") == 0


def eventually(holds: Callable[[], bool], seconds: float = 30) -> None:
    until = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < until, "it never came to be"
        time.sleep(0.1)


def run_with(
    server: TritonServer, kind: str, work: Callable[[Any], Awaitable[list[Outcome]]], model: str = "nemodiff"
) -> list[Outcome]:
    async def main() -> list[Outcome]:
        client = clients.GrpcClient(server.grpc, model) if kind == "grpc" else clients.HttpClient(server.http, model)
        try:
            return await work(client)
        finally:
            await client.close()

    return asyncio.run(asyncio.wait_for(main(), timeout=600))


def post(server: TritonServer, path: str, content: Any) -> tuple[int, Any]:
    data = content if isinstance(content, bytes) else json.dumps(content).encode()
    request = urllib.request.Request(f"http://{server.http}/v2/models/{path}", data=data)
    try:
        with urllib.request.urlopen(request, timeout=60) as reply:
            return reply.status, json.loads(reply.read())
    except urllib.error.HTTPError as error:
        text = error.read().decode().removeprefix("data: ")
        return error.code, json.loads(text)["error"]


def call_of(prompt: Any, **options: Any) -> Call:
    return Call(number=0, arrival_s=0.0, category="", wish="", prompt=prompt, options=options)


def many(seed: int, num_calls: int) -> list[Call]:
    mix = Mix(cancelled=0.1, flawed=0.05)
    return make_calls(mix, num_calls, seed)


@pytest.mark.parametrize("kind", ["grpc", "http"])
@pytest.mark.parametrize("num_calls", [200, pytest.param(2000, marks=pytest.mark.slow)])
def test_64_clients(idle: TritonServer, make_engine: Callable[[], TriModeEngine], kind: str, num_calls: int) -> None:
    calls = many(20, num_calls)
    answers = expected_answers(make_engine(), calls)
    outcomes = run_with(idle, kind, lambda client: run_closed(client, calls, 64))
    verdict = judge(outcomes, answers, clients.NAMES)
    assert not verdict.wrong
    assert len(verdict.equal) + len(verdict.left) + len(verdict.refused) == num_calls
    assert verdict.left
    assert verdict.refused


def test_answers_at_once_and_request_numbers(idle: TritonServer, make_engine: Callable[[], TriModeEngine]) -> None:
    call = call_of("hello", mode="self_speculation", max_new_tokens=20)
    answer = expected_answers(make_engine(), [call])[0]
    fields = {"text_input": "hello", "max_new_tokens": 20, "stream": False, "id": "mine"}
    status, content = post(idle, "nemodiff/generate", fields)
    assert (status, content["text_output"], content["id"]) == (200, answer.text, "mine")
    told = json.loads(content["stats"])["answer"]
    assert told["new_tokens"] == len(answer.token_ids)
    assert told["tokens_per_forward"] == answer.stats.tokens_per_forward


def test_tokens_in_and_out(idle: TritonServer, make_engine: Callable[[], TriModeEngine]) -> None:
    call = call_of([200, 201, 202], mode="ar", max_new_tokens=30)
    answer = expected_answers(make_engine(), [call])[0]
    status, content = post(
        idle, "nemodiff_tokens/generate", {"input_ids": [200, 201, 202], "mode": "ar", "max_new_tokens": 30, "stream": False}
    )
    assert (status, tuple(content["token_ids"])) == (200, answer.token_ids)
    assert "text_output" not in content


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"mode": "fast"}, "mode: got 'fast', allowed: ar or"),
        # The server itself turns JSON into tensors, and does not say of which input.
        ({"mode": 3}, "non-string as string"),
        ({"max_new_tokens": 0}, "max_new_tokens: got 0, allowed: an integer of at least 1"),
        ({"max_new_tokens": "many"}, "Unable to parse"),
        ({"temperature": 0.5}, "temperature: got 0.5"),
        ({"max_tokens": 5}, "max_tokens: got '5', allowed: only the inputs"),
        ({"messages": "[]"}, "exactly one of text_input, messages, input_ids"),
    ],
)
def test_errors_over_http(idle: TritonServer, fields: dict[str, Any], named: str) -> None:
    status, error = post(idle, "nemodiff/generate", {"text_input": "a", "stream": False, **fields})
    assert status in (400, 500), error
    assert named in error


def test_random_tensors(idle: TritonServer) -> None:
    """Any type, any shape, any name: an error or an answer within seconds, and the server is well afterwards."""
    rng = random.Random(4)
    fields = post_config(idle)
    with grpc.InferenceServerClient(idle.grpc) as client:
        replies: list[Any] = []
        client.start_stream(lambda result, error: replies.append(error or result))
        for _ in range(300):
            names = rng.sample(fields, rng.randint(0, 5)) + rng.sample(["typo", "text_input"], rng.randint(0, 2))
            inputs = [random_tensor(rng, name) for name in dict.fromkeys(names)]
            inputs += [] if "max_new_tokens" in names else [tensor("max_new_tokens", np.array([3]), "INT64")]
            client.async_stream_infer("nemodiff", inputs, enable_empty_final_response=True)
        eventually(lambda: sum(is_end(reply) for reply in replies) == 300)
        client.stop_stream()
    assert idle.is_ready("nemodiff")
    messages = [reply.message() for reply in replies if isinstance(reply, Exception)]
    assert len(messages) > 200
    assert not [message for message in messages if "Traceback" in message]


def post_config(server: TritonServer) -> list[str]:
    with urllib.request.urlopen(f"http://{server.http}/v2/models/nemodiff/config", timeout=10) as reply:
        return [entry["name"] for entry in json.loads(reply.read())["input"]]


def is_end(reply: Any) -> bool:
    if isinstance(reply, Exception):
        return True
    return bool(reply.get_response().parameters["triton_final_response"].bool_param)


def tensor(name: str, array: np.ndarray, dtype: str) -> Any:
    found = grpc.InferInput(name, list(array.shape), dtype)
    found.set_data_from_numpy(array)
    return found


def random_tensor(rng: random.Random, name: str) -> Any:
    shape = rng.choice([[1], [1], [1], [0], [2], [1, 1], [3, 2]])
    size = int(np.prod(shape))
    kind = rng.choice(["INT64", "INT64", "BYTES", "BYTES", "FP64", "BOOL", "INT32"])
    values = {
        "INT64": lambda: rng.choice([-(2**63), -1, 0, 1, 7, 399, 2**63 - 1]),
        "INT32": lambda: rng.choice([-1, 0, 1]),
        "FP64": lambda: rng.choice([0.0, 0.5, -1.0, float("nan"), float("inf"), 1e300]),
        "BOOL": lambda: rng.choice([True, False]),
        "BYTES": lambda: rng.choice([b"", b"ar", b"\xff\xfe", b"[[[[", b'{"a": 1}', "é".encode(), b"x" * 5000]),
    }[kind]
    types = {"INT64": np.int64, "INT32": np.int32, "FP64": np.float64, "BOOL": np.bool_, "BYTES": np.object_}
    return tensor(name, np.array([values() for _ in range(size)], types[kind]).reshape(shape), kind)


CLIENT = """
import asyncio, sys
sys.path.insert(0, sys.argv[1])
from load_generator import Call
from triton_clients import GrpcClient, HttpClient

async def main():
    kind = GrpcClient if sys.argv[2] == "grpc" else HttpClient
    client = kind(sys.argv[3], "nemodiff")
    async def one(number):
        options = {"mode": "ar", "max_new_tokens": 1500, "ignore_eos": True}
        call = Call(number=number, arrival_s=0, category="", wish="", prompt="a", options=options)
        async for piece in client.stream(call):
            print(number, flush=True)
    await asyncio.gather(*(one(number) for number in range(12)))

asyncio.run(main())
"""


def num_cancelled(server: TritonServer) -> float:
    return server.metrics().get('nemodiff_requests_total{model="nemodiff",reason="cancelled",version="1"}', 0.0)


@pytest.mark.parametrize("kind", ["grpc", "http"])
def test_killed_clients_free_their_slots(idle: TritonServer, make_engine: Callable[[], TriModeEngine], kind: str) -> None:
    """Twelve streams of a client that dies, on eight slots: others are unharmed, and what waited never runs."""
    address = idle.grpc if kind == "grpc" else idle.http
    before = num_cancelled(idle)
    victim = subprocess.Popen([sys.executable, "-c", CLIENT, str(BENCHMARKS), kind, address], stdout=subprocess.PIPE, text=True)
    assert victim.stdout is not None
    victim.stdout.readline()
    calls = [call for call in many(3, 40) if call.flaw is None and call.cancel_after is None]
    answers = expected_answers(make_engine(), calls)

    async def work(client: Any) -> list[Outcome]:
        others = asyncio.create_task(run_closed(client, calls, 8))
        await asyncio.sleep(0.2)
        victim.send_signal(signal.SIGKILL)
        return await others

    assert not judge(run_with(idle, "grpc", work), answers, clients.NAMES).wrong
    victim.wait()
    victim.stdout.close()
    eventually(lambda: num_cancelled(idle) == before + 12)


def test_reload_drops_nothing(bundle_dir: Path, tmp_path: Path, make_engine: Callable[[], TriModeEngine]) -> None:
    """Streams that began before a reload end after it, with the right answer, as do those that come meanwhile; then the old
    version leaves. A server of its own: this one keeps old versions for good once a stream over gRPC was cancelled.
    """
    repository = make_repository(bundle_dir, tmp_path / "repo", "--num-threads", 1)
    calls = [dataclasses.replace(call_of("a" * (1 + number), **LONG), number=number) for number in range(24)]
    answers = expected_answers(make_engine(), calls)
    config = repository / "nemodiff" / "config.pbtxt"

    async def work(client: Any) -> list[Outcome]:
        streams = asyncio.create_task(run_closed(client, calls, 12))
        await asyncio.sleep(0.1)
        config.write_text(config.read_text() + "# touched\n")
        error = await asyncio.to_thread(server.load, "nemodiff")
        assert error is None
        assert not streams.done()
        return await streams

    with TritonServer(repository, ENVIRONMENT, ("nemodiff",)) as server:
        assert not judge(run_with(server, "grpc", work), answers, clients.NAMES).wrong
        eventually(lambda: "successfully unloaded 'nemodiff'" in server.log())


def test_a_corrupt_bundle_harms_nobody(bundle_dir: Path, tmp_path: Path, make_engine: Callable[[], TriModeEngine]) -> None:
    repository = make_repository(bundle_dir, tmp_path / "repo", "--num-threads", 1)
    weights, good = repository / "nemodiff/1/bundle/weights/shared.safetensors", tmp_path / "good"
    calls = [dataclasses.replace(call_of("a" * (1 + number), **LONG), number=number) for number in range(8)]
    calls = [dataclasses.replace(call, options={**LONG, "max_new_tokens": 400}) for call in calls]
    answers = expected_answers(make_engine(), calls)
    # A new file under the old name, as a careless deployment would do: the running version has the old one open.
    shutil.copy(weights, good)
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 0xFF

    with TritonServer(repository, ENVIRONMENT, ("nemodiff",)) as server:

        async def work(client: Any) -> list[Outcome]:
            streams = asyncio.create_task(run_closed(client, calls, 4))
            await asyncio.sleep(0.2)
            weights.unlink()
            weights.write_bytes(content)
            error = await asyncio.to_thread(server.load, "nemodiff")
            assert error is not None
            assert "weights/shared.safetensors" in error
            good.replace(weights)
            return await streams

        assert not judge(run_with(server, "http", work), answers, clients.NAMES).wrong
        assert server.is_ready("nemodiff")
        assert server.load("nemodiff") is None
        outcome = run_with(server, "http", lambda client: run_closed(client, calls[:1], 1))
        assert not judge(outcome, answers, clients.NAMES).wrong
        # This server, whatever the model, takes all of its 30 seconds to end once a load has failed.
        server.kill()


def test_restart_under_load(bundle_dir: Path, tmp_path: Path, make_engine: Callable[[], TriModeEngine]) -> None:
    """A server that dies ends its streams with an error at once; the same client goes on once it is back."""
    repository = make_repository(bundle_dir, tmp_path / "repo", "--num-threads", 1, "--link")
    calls = [dataclasses.replace(call_of("a" * (1 + number), **LONG), number=number) for number in range(12)]
    short = [dataclasses.replace(call, options={"mode": "ar", "max_new_tokens": 10}) for call in calls]
    answers = expected_answers(make_engine(), short)
    with TritonServer(repository, ENVIRONMENT) as server:
        for kind in ("grpc", "http"):

            async def work(client: Any) -> list[Outcome]:
                streams = [asyncio.create_task(run_call(client, call)) for call in calls]
                await asyncio.sleep(0.5)
                await asyncio.to_thread(server.kill)
                ended = await asyncio.wait_for(asyncio.gather(*streams), timeout=30)
                assert all(outcome.broken or outcome.refused for outcome in ended)
                assert any(outcome.num_tokens for outcome in ended)
                await asyncio.to_thread(server.start)
                return await run_closed(client, short, 4)

            assert not judge(run_with(server, kind, work), answers, clients.NAMES).wrong


def test_stopping_answers_what_is_there(bundle_dir: Path, tmp_path: Path, make_engine: Callable[[], TriModeEngine]) -> None:
    repository = make_repository(bundle_dir, tmp_path / "repo", "--num-threads", 1, "--link")
    call = call_of("a", **{**LONG, "max_new_tokens": 400})
    answers = expected_answers(make_engine(), [call])
    with TritonServer(repository, ENVIRONMENT) as server:

        async def work(client: Any) -> list[Outcome]:
            stream = asyncio.create_task(run_call(client, call))
            await asyncio.sleep(0.2)
            await asyncio.to_thread(server.stop)
            return [await stream]

        assert not judge(run_with(server, "grpc", work), answers).wrong

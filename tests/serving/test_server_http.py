"""The server on a scripted session: what clients see when all goes well, when it does not, and when they leave."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import socket
import threading
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from http_clients import BareClient
from load_generator import Mix, make_calls, run_closed

from nemodiff_trt.contract import Limits
from nemodiff_trt.runtime.engine import EngineOptions, TriModeEngine
from nemodiff_trt.runtime.server.options import ServerOptions
from nemodiff_trt.tokenizer import Tokenizer
from support.checkpoints import write_tokenizer
from support.gated_session import GatedSession
from support.http_server import CHAT, COMPLETION, HttpServer, wait_until

LIMITS = Limits(max_batch_size=2, max_seq_len=160, block_length=16, prefill_chunk=32)
OPTIONS = ServerOptions(model_name="tiny", max_body_bytes=20_000, max_answers=4, read_timeout_s=2.0)
KEYED = ServerOptions(model_name="tiny", api_keys=("first", "secönd"), allowed_hosts=("127.0.0.1", "[::1]"))
HELLO: list[Any] = [{"role": "user", "content": "hello"}]
LONG = {"prompt": "a", "mode": "ar", "max_tokens": 150}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder)
    return Tokenizer.from_dir(folder)


def make_engine(session: GatedSession, tokenizer: Tokenizer) -> TriModeEngine:
    return TriModeEngine(session, tokenizer, EngineOptions(max_waiting=4, prefix_rows=0))


@pytest.fixture(scope="module")
def session() -> GatedSession:
    return GatedSession(LIMITS)


@pytest.fixture(scope="module")
def server(session: GatedSession, tokenizer: Tokenizer) -> Iterator[HttpServer]:
    with HttpServer(make_engine(session, tokenizer), OPTIONS) as running:
        yield running


class TestAnswers:
    def test_a_stream_is_the_whole_answer(self, server: HttpServer, tokenizer: Tokenizer) -> None:
        client = server.client()
        own = {"mode": "self_speculation", "block_length": 8, "return_token_ids": True}
        whole = client.chat.completions.create(model="tiny", messages=HELLO, max_tokens=30, extra_body=own)
        chunks = list(
            client.chat.completions.create(
                model="tiny", messages=HELLO, max_tokens=30, extra_body=own, stream=True, stream_options={"include_usage": True}
            )
        )
        choice: Any = whole.choices[0]
        assert choice.message.content == tokenizer.decode(choice.token_ids)
        assert len(choice.token_ids) == 30
        assert choice.finish_reason == "length"
        *pieces, last = chunks
        assert chunks[0].choices[0].delta.role == "assistant"
        assert "".join(piece.choices[0].delta.content or "" for piece in pieces) == choice.message.content
        assert [token for piece in pieces for token in piece.choices[0].model_extra["token_ids"]] == choice.token_ids
        assert [piece.choices[0].finish_reason for piece in pieces] == [None] * (len(pieces) - 1) + ["length"]
        assert len(pieces) < 25, "several tokens a run"
        assert last.choices == []
        assert last.usage == whole.usage
        assert whole.usage is not None
        assert whole.usage.completion_tokens == 30
        assert whole.usage.total_tokens == whole.usage.prompt_tokens + 30

    def test_completions_of_texts_and_ids(self, server: HttpServer, tokenizer: Tokenizer) -> None:
        client = server.client()
        several = client.completions.create(model="tiny", prompt=["ab", "abc"], n=2, max_tokens=4, echo=True)
        assert [choice.index for choice in several.choices] == [0, 1, 2, 3]
        texts = [choice.text for choice in several.choices]
        assert texts[0] == texts[1]
        assert texts[2] == texts[3] == "abc" + tokenizer.decode([113, 114, 115, 116])
        assert several.usage is not None
        assert (several.usage.prompt_tokens, several.usage.completion_tokens) == (5, 16)
        by_id = client.completions.create(model="tiny", prompt=[[200, 201], [200, 201, 202]], max_tokens=4)
        assert [choice.text for choice in by_id.choices] == [tokenizer.decode(range(n, n + 4)) for n in (112, 113)]
        assert len(client.completions.create(model="tiny", prompt="").choices[0].text) > 0

    def test_stop_ends_before_its_text(self, server: HttpServer) -> None:
        client = server.client()
        whole = client.completions.create(model="tiny", prompt="x" * 40, max_tokens=40, extra_body={"mode": "ar"}).choices[0]
        stop = whole.text[10:12]
        for stream in (False, True):
            answer: Any = client.completions.create(model="tiny", prompt="x" * 40, max_tokens=40, stop=[stop], stream=stream)
            choices = [chunk.choices[0] for chunk in answer] if stream else [answer.choices[0]]
            assert "".join(choice.text for choice in choices) == whole.text[:10]
            assert choices[-1].finish_reason == "stop"

    def test_a_trace_tells_every_run(self, server: HttpServer) -> None:
        body = {"messages": HELLO, "stream": True, "trace": True, "max_tokens": 20, "block_length": 8}
        _, headers, text = server.request("POST", CHAT, body)
        assert headers["content-type"].startswith("text/event-stream")
        events = [json.loads(line[6:]) for line in text.decode().splitlines() if line.startswith("data: {")]
        assert text.endswith(b"data: [DONE]\n\n")
        traces = [event["choices"][0]["trace"] for event in events]
        decoding = [trace for trace in traces if trace["role"] != "prefill"]
        assert [trace["role"] for trace in decoding[:2]] == ["draft", "verify"]
        assert len(decoding[0]["drafted"]) == 7
        assert decoding[1]["accepted"] == len(decoding[1]["emitted"]) - 1
        told = "".join(text for trace in traces for _, text in trace["emitted"])
        assert told == "".join(event["choices"][0]["delta"].get("content", "") for event in events)
        assert sum(len(trace["emitted"]) for trace in traces) == 20
        details = events[-1]["choices"][0]["nemodiff"]
        assert details["tokens_per_forward"] == pytest.approx(19 / len(decoding), rel=1e-12)

    def test_models_health_and_page(self, server: HttpServer) -> None:
        model: Any = server.client().models.retrieve("tiny")
        assert model.modes == ["ar", "diffusion", "self_speculation", "quadratic"]
        assert [entry.id for entry in server.client().models.list()] == ["tiny"]
        assert server.request("GET", "/health")[::2] == (200, b"ok\n")
        status, headers, page = server.request("GET", "/")
        assert (status, headers["content-type"]) == (200, "text/html; charset=utf-8")
        assert b"://" not in page.replace(b"http://www.w3.org/", b"")
        assert "default-src 'none'" in headers["content-security-policy"]
        for name in ("app.js", "lane.js", "stream.js", "style.css", "icon.svg"):
            assert f"/page/{name}".encode() in page or name in ("lane.js", "stream.js")
            assert server.request("GET", f"/page/{name}")[0] == 200

    def test_metrics_count(self, server: HttpServer) -> None:
        before = server.metric('nemodiff_answer_tokens_total{mode="ar"}')
        server.request("POST", COMPLETION, {"prompt": "a", "mode": "ar", "max_tokens": 7})
        assert server.metric('nemodiff_answer_tokens_total{mode="ar"}') == before + 7
        assert server.metric("nemodiff_free_slots") == 2
        assert server.metric("nemodiff_up") == 1
        assert server.metric("nemodiff_first_token_seconds_count") > 0


class TestRefusals:
    @pytest.mark.parametrize(
        ("path", "body", "status", "param"),
        [
            (CHAT, {"messages": HELLO, "mode": "fast"}, 400, "mode"),
            (CHAT, {"messages": HELLO, "max_completion_tokens": 0}, 400, "max_completion_tokens"),
            (CHAT, {"messages": HELLO, "temperature": 0.7}, 400, "temperature"),
            (CHAT, {"messages": HELLO, "logprobs": True}, 400, "logprobs"),
            (CHAT, {"messages": HELLO, "logprobs": True, "top_logprobs": 2}, 400, "top_logprobs"),
            (CHAT, {"messages": HELLO, "block_length": 99}, 400, "block_length"),
            (CHAT, {"messages": [{"role": "boss", "content": "a"}]}, 400, "messages"),
            (CHAT, {"messages": [{"role": "user", "content": "x" * 200}]}, 400, "messages"),
            (CHAT, {"messages": HELLO, "model": "other"}, 404, "model"),
            (CHAT, {"messages": HELLO, "colour": "red"}, 400, "colour"),
            (COMPLETION, {"prompt": [5, 400]}, 400, "prompt"),
            (COMPLETION, {"prompt": "a", "n": 5}, 400, "n"),
            (COMPLETION, {"prompt": "a", "stream": True, "steps": 3, "mode": "ar"}, 400, "steps"),
            (COMPLETION, b"{", 400, None),
            (COMPLETION, b" " * 20_001, 413, None),
        ],
    )
    def test_the_error_names_the_field(self, server: HttpServer, path: str, body: Any, status: int, param: str | None) -> None:
        told = server.error(path, body)
        assert (told[0], told[1]["param"]) == (status, param)
        assert set(told[1]) == {"message", "type", "param", "code"}
        assert len(told[1]["message"]) < 600

    def test_paths_methods_and_kinds(self, server: HttpServer) -> None:
        assert server.error("/v1/nothing", {})[0] == 404
        assert server.request("GET", CHAT)[0] == 405
        assert server.request("GET", "/v1/models/other")[0] == 404
        # What any page could send without asking.
        assert server.error(CHAT, b"{}", {"content-type": "text/plain"})[0] == 415

    def test_one_too_many(self, server: HttpServer, session: GatedSession) -> None:
        answers: list[tuple[int, dict[str, str], bytes]] = []
        session.close_gate_after(1)
        threads = [threading.Thread(target=lambda: answers.append(server.request("POST", COMPLETION, LONG))) for _ in range(12)]
        for thread in threads:
            thread.start()
        wait_until(lambda: server.metrics.num_open == 12)
        session.open_gate()
        for thread in threads:
            thread.join(timeout=10)
        refused = [(headers, json.loads(body)) for status, headers, body in answers if status == 429]
        # Of those that came while the first ones ran, two had slots and four waited at most.
        assert 6 <= len(refused) < 12
        assert [status for status, _, _ in answers].count(200) == 12 - len(refused)
        assert all(headers["retry-after"] == "1" for headers, _ in refused)
        assert {body["error"]["type"] for _, body in refused} == {"rate_limit_error"}
        assert server.metric("nemodiff_free_slots") == 2

    def test_a_body_that_never_ends(self, server: HttpServer) -> None:
        with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
            head = f"POST {CHAT} HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ncontent-length: 100\r\n\r\n"
            connection.sendall(head.encode() + b"{")
            assert connection.recv(100).startswith(b"HTTP/1.1 408")


class TestLeaving:
    @pytest.mark.parametrize("stream", [True, False])
    def test_a_client_that_leaves_frees_its_slot(self, server: HttpServer, session: GatedSession, stream: bool) -> None:
        line = 'nemodiff_requests_total{reason="cancelled"}'
        before = server.metric(line)
        session.close_gate_after(5)
        with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
            body = json.dumps({**LONG, "stream": stream}).encode()
            head = f"POST {COMPLETION} HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\n"
            head += f"content-length: {len(body)}\r\n\r\n"
            connection.sendall(head.encode() + body)
            wait_until(lambda: not session.gate.is_set())
            if stream:
                assert connection.recv(100).startswith(b"HTTP/1.1 200")
        wait_until(lambda: server.metrics.num_open == 0)
        session.open_gate()
        wait_until(lambda: server.metric(line) == before + 1)
        assert server.metric("nemodiff_free_slots") == 2
        assert server.metric(f'nemodiff_http_requests_total{{path="{COMPLETION}",status="499"}}') > 0


@pytest.fixture(scope="module")
def guarded(tokenizer: Tokenizer) -> Iterator[HttpServer]:
    with HttpServer(make_engine(GatedSession(LIMITS), tokenizer), KEYED) as running:
        yield running


class TestKeys:
    def test_keys(self, guarded: HttpServer) -> None:
        for given in ({}, {"authorization": "Bearer wrong"}, {"authorization": "first"}, {"authorization": "Basic first"}):
            for path in ("/v1/models", "/metrics", "/openapi.json"):
                assert guarded.request("GET", path, headers=given)[0] == 401
            status, error = guarded.error(CHAT, {"messages": HELLO}, given)
            assert (status, error["code"]) == (401, "invalid_api_key")
        assert guarded.client("first").models.list().data[0].id == "tiny"
        assert (
            guarded.request("GET", "/v1/models", headers={"authorization": "bearer secönd".encode().decode("latin-1")})[0]
            == 200
        )
        with pytest.raises(openai.AuthenticationError):
            guarded.client("firs").models.list()

    def test_hosts(self, guarded: HttpServer) -> None:
        for host in ("evil.example", "127.0.0.1.evil.example:80", "", "[::1]evil"):
            assert guarded.request("GET", "/", headers={"host": host})[0] in (400, 421)
        for host in ("127.0.0.1", "127.0.0.1:80", "[::1]:8000"):
            assert guarded.request("GET", "/", headers={"host": host})[0] == 200

    def test_page_and_health_need_none(self, guarded: HttpServer) -> None:
        assert [guarded.request("GET", path)[0] for path in ("/", "/page/app.js", "/health")] == [200] * 3


class TestLog:
    def test_ids_and_no_text(self, server: HttpServer, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.INFO, logger="nemodiff.server")
        secret = {"messages": [{"role": "user", "content": "swordfish"}], "max_tokens": 3}
        _, headers, _ = server.request("POST", CHAT, secret, {"x-request-id": "mine-1"})
        assert headers["x-request-id"] == "mine-1"
        _, headers, _ = server.request("POST", CHAT, {**secret, "stop": "swordfish", "top_p": 7}, {"x-request-id": "no good"})
        assert headers["x-request-id"].startswith("req-")
        wait_until(lambda: len(caplog.messages) >= 2)
        assert caplog.messages[0].startswith(f"mine-1 POST {CHAT} 200")
        assert "new_tokens=3" in caplog.messages[0]
        assert "swordfish" not in caplog.text

    def test_prompts_if_asked_for(self, tokenizer: Tokenizer, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.INFO, logger="nemodiff.server")
        options = ServerOptions(model_name="tiny", log_prompts=True)
        with HttpServer(make_engine(GatedSession(LIMITS), tokenizer), options) as server:
            server.request("POST", COMPLETION, {"prompt": "swordfish"})
        assert "swordfish" in caplog.text


def test_requests_leave_nothing_behind(server: HttpServer, session: GatedSession) -> None:
    mix = Mix(max_new_tokens=(2, 12), num_problems=(1, 1), kinds=("text",), cancelled=0.2, flawed=0.1)
    calls = make_calls(mix, 150, seed=3)

    def num_objects_after_a_round() -> int:
        asyncio.run(run_closed(BareClient(server.url), calls, 4))
        wait_until(lambda: server.metrics.num_open == 0)
        # The session keeps a list of its runs, for tests of the loop.
        session.runs.clear()
        gc.collect()
        return len(gc.get_objects())

    num_objects_after_a_round()
    before = num_objects_after_a_round()
    # One object kept for every request would be 150 more.
    assert num_objects_after_a_round() < before + 75


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_engine_that_fails_is_told_and_ends_the_server(tokenizer: Tokenizer) -> None:
    session = GatedSession(LIMITS)
    with HttpServer(make_engine(session, tokenizer), OPTIONS) as server:
        session.close_gate_after(5)
        stream = server.client().completions.create(model="tiny", prompt="a", max_tokens=150, stream=True)
        next(iter(stream))
        session.is_broken = True
        session.open_gate()
        with pytest.raises(openai.APIError, match="the device is gone"):
            list(stream)
        assert server.error(COMPLETION, LONG)[0] == 503
        assert server.request("GET", "/health")[0] == 503
        assert server.metric("nemodiff_up") == 0
        assert server.stopped.wait(timeout=5)

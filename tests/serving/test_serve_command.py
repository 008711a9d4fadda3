"""`nemodiff serve` as a process of its own, driven by the official client of the API; answers are those of this process."""

from __future__ import annotations

import asyncio
import math
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from http_clients import NAMES, OpenAIClient
from load_generator import DEFAULT_WISHES, Flaw, Mix, make_calls, run_closed
from load_report import expected_answers, judge
from serve_process import ServeProcess

from nemodiff_trt.runtime.engine import EngineOptions, TriModeEngine
from nemodiff_trt.runtime.tri_mode_lm import TriModeLM
from support.bundles import build_bundle
from support.http_server import wait_until

KEY = "key-1"
OPTIONS = ("--num-threads", "1", "--api-key", KEY)
HELLO: list[Any] = [{"role": "user", "content": "hello"}]
# A server tells thoughts apart from answers, and this process does not.
WISHES = {name: wish for name, wish in DEFAULT_WISHES.items() if "enable_thinking" not in wish}
MIX = Mix(
    wishes=WISHES, max_new_tokens=(2, 12), num_problems=(1, 1), cancelled=0.1, flawed=0.1,
    flaws=(Flaw("mode", {"mode": "fast"}), Flaw("max_new_tokens", {"max_new_tokens": 0}), Flaw("steps", {"steps": 3})),
)  # fmt: skip


def client_of(server: ServeProcess) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key=KEY, max_retries=0, timeout=30)


@pytest.fixture(scope="module")
def bundle_dir(tiny_checkpoint_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundle") / "served.bundle"
    return build_bundle(tiny_checkpoint_dir, folder, sampling=True, max_seq_len=512)


@pytest.fixture(scope="module")
def served(bundle_dir: Path) -> Iterator[ServeProcess]:
    with ServeProcess(bundle_dir, *OPTIONS) as running:
        yield running


@pytest.fixture(scope="module")
def model(bundle_dir: Path) -> TriModeLM:
    return TriModeLM.from_bundle(bundle_dir, num_threads=1)


class TestOfficialClient:
    def test_sampling_seed_and_n(self, served: ServeProcess, model: TriModeLM) -> None:
        client, wishes = client_of(served), {"temperature": 1.0, "top_p": 0.9, "seed": 7, "max_tokens": 12}
        answers = client.chat.completions.create(model="served", messages=HELLO, n=3, **wishes)  # type: ignore[call-overload]
        texts = [choice.message.content for choice in answers.choices]
        own = model.generate(HELLO, n=3, temperature=1.0, top_p=0.9, seed=7, max_new_tokens=12)
        assert texts == [result.text for result in own]
        assert len(set(texts)) == 3
        streamed: list[str] = [""] * 3
        for chunk in client.chat.completions.create(model="served", messages=HELLO, n=3, stream=True, **wishes):  # type: ignore[call-overload]
            streamed[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
        assert streamed == texts

    @pytest.mark.parametrize("mode", ["ar", "diffusion", "self_speculation"])
    def test_logprobs(self, served: ServeProcess, model: TriModeLM, mode: str) -> None:
        client, own = client_of(served), model.generate(HELLO, mode=mode, max_new_tokens=8, logprobs=2)[0].logprobs
        answer = client.chat.completions.create(
            model="served", messages=HELLO, max_tokens=8, logprobs=True, top_logprobs=2, extra_body={"mode": mode}
        )
        told = answer.choices[0].logprobs
        assert told is not None
        assert told.content is not None
        assert [entry.logprob for entry in told.content] == pytest.approx([entry.logprob for entry in own], rel=1e-6)
        assert [len(entry.top_logprobs) for entry in told.content] == [2] * 8
        assert all(entry.logprob == math.log(1.0) or entry.logprob < 0 for entry in told.content)
        completion = client.completions.create(
            model="served", prompt="hello", max_tokens=5, logprobs=3, extra_body={"mode": mode}
        )
        listed = completion.choices[0].logprobs
        assert listed is not None
        assert (len(listed.tokens or ()), len(listed.top_logprobs or ())) == (5, 5)
        assert (listed.text_offset or [None])[0] == 0

    def test_thinking_budget(self, served: ServeProcess) -> None:
        answer: Any = client_of(served).chat.completions.create(
            model="served", messages=HELLO, max_tokens=24, extra_body={"enable_thinking": True, "max_thinking_tokens": 5}
        )
        message = answer.choices[0].message
        assert "</think>" not in message.content + message.reasoning_content
        assert answer.usage.completion_tokens_details.reasoning_tokens <= 6

    def test_errors_are_those_of_the_client(self, served: ServeProcess) -> None:
        client = client_of(served)
        with pytest.raises(openai.BadRequestError) as caught:
            client.chat.completions.create(model="served", messages=HELLO, temperature=-1)
        assert caught.value.param == "temperature"
        assert caught.value.request_id
        with pytest.raises(openai.NotFoundError):
            client.chat.completions.create(model="gpt", messages=HELLO)
        with pytest.raises(openai.AuthenticationError):
            client.with_options(api_key="no").models.list()

    def test_a_mixed_load_gets_the_answers_of_this_process(self, served: ServeProcess, model: TriModeLM) -> None:
        calls = make_calls(MIX, 60, seed=4)
        engine = TriModeEngine(model.session, model.tokenizer, EngineOptions(prefix_rows=0))
        answers = expected_answers(engine, calls)

        async def load() -> dict[str, Any]:
            client = OpenAIClient(served.url, KEY)
            outcomes = await run_closed(client, calls, 16)
            await client.close()
            return judge(outcomes, answers, NAMES).to_dict()

        verdict = asyncio.run(load())
        assert verdict["first_wrong"] == {}
        assert verdict["refused"] == sum(call.flaw is not None for call in calls) > 0
        metrics = client_of(served).with_options(base_url=served.url)
        wait_until(lambda: "nemodiff_free_slots 4" in metrics.get("/metrics", cast_to=str))


class TestLife:
    def test_open_streams_are_finished_before_the_end(self, bundle_dir: Path) -> None:
        with ServeProcess(bundle_dir, *OPTIONS, "--model-name", "other") as running:
            stream = client_of(running).completions.create(
                model="other", prompt="a", max_tokens=300, stream=True, extra_body={"mode": "ar", "ignore_eos": True}
            )
            chunks = iter(stream)
            next(chunks)
            running.process.send_signal(signal.SIGTERM)
            assert list(chunks)[-1].choices[0].finish_reason == "length"
            assert running.process.wait(timeout=20) == 0
            assert "new_tokens=300" in running.read_log()

    def test_clear_refusals(self, bundle_dir: Path, served: ServeProcess) -> None:
        with pytest.raises(RuntimeError, match="port: got") as caught, ServeProcess(bundle_dir, port=served.port):
            pass
        assert str(caught.value).count("\n") == 1
        with pytest.raises(RuntimeError, match="max_waiting"), ServeProcess(bundle_dir, "--max-waiting", "3"):
            pass

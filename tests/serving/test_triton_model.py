"""The model behind the Python backend, with a stand-in for Triton: streams, errors, cancellation, metrics, the end."""

from __future__ import annotations

import dataclasses
import gc
import json
import re
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nemodiff_trt.contract import Limits
from nemodiff_trt.errors import BundleError
from nemodiff_trt.runtime.engine import EngineOptions, TriModeEngine
from nemodiff_trt.runtime.options import GenerationOptions
from nemodiff_trt.runtime.triton_repository.fields import outputs
from nemodiff_trt.runtime.triton_repository.served_model import ServedModel, check_tensors
from nemodiff_trt.runtime.triton_repository.settings import ServingSettings
from nemodiff_trt.runtime.triton_repository.token_only import TokenOnly
from nemodiff_trt.runtime.triton_repository.variant import Variant
from nemodiff_trt.tokenizer import Tokenizer
from support.checkpoints import write_tokenizer
from support.fake_triton import FakeBackend, Request
from support.gated_session import GatedSession
from support.scripted_session import ScriptedSession, counting, guess_from

LIMITS = Limits(max_batch_size=4, max_seq_len=160, block_length=16, prefill_chunk=32, quadratic_block_length=4)
SETTINGS = ServingSettings(
    engine=EngineOptions(max_waiting=50, prefix_rows=0), cancel_poll_s=0.005, metrics_s=0.02, warm_up=False
)
LONG = {"text_input": "a", "mode": "ar", "max_new_tokens": 150, "ignore_eos": True}


@pytest.fixture
def session() -> GatedSession:
    return GatedSession(LIMITS, keeps_logits=True)


@pytest.fixture
def backend() -> FakeBackend:
    return FakeBackend()


@pytest.fixture
def tokenizer(tmp_path: Path) -> Tokenizer:
    write_tokenizer(tmp_path)
    return Tokenizer.from_dir(tmp_path)


@pytest.fixture
def served(backend: FakeBackend, session: GatedSession, tokenizer: Tokenizer) -> Iterator[ServedModel]:
    model = ServedModel(backend, TriModeEngine(session, tokenizer, SETTINGS.engine), SETTINGS, {"model": "m"})
    yield model
    session.gate.set()
    model.close()


def request(tensors: dict[str, Any], variant: Variant = Variant.TEXT, **parameters: Any) -> Request:
    return Request(tensors, [field.name for field in outputs(variant)], parameters)


def ask(served: ServedModel, tensors: dict[str, Any], **parameters: Any) -> Any:
    sent = request(tensors, **parameters)
    served.execute([sent])
    return sent.sender


def eventually(holds: Callable[[], bool]) -> None:
    until = time.monotonic() + 10
    while not holds():
        assert time.monotonic() < until, "it never came to be"
        time.sleep(0.002)


@pytest.mark.parametrize("mode", ["ar", "self_speculation", "diffusion"])
def test_streams_equal_the_engine(served: ServedModel, session: GatedSession, tokenizer: Tokenizer, mode: str) -> None:
    senders = [ask(served, {"text_input": "a" * size, "mode": mode, "max_new_tokens": 20}) for size in range(1, 12)]
    engine = TriModeEngine(ScriptedSession(counting(110), guess_from(counting(110), 1, 0.8), LIMITS), tokenizer)
    for size, sender in enumerate(senders, start=1):
        engine.submit("a" * size, GenerationOptions(mode=mode, max_new_tokens=20))  # type: ignore[arg-type]
        result = None
        while engine.has_work:
            result = next((found.event.result for found in engine.step() if found.event.result), None)
        assert result is not None
        assert (sender.text, tuple(sender.token_ids)) == (result.text, result.token_ids)
        assert [response.values["finish_reason"] for response in sender.responses][-1] == [b"length"]
        assert all(response.values["finish_reason"] == [b""] for response in sender.responses[:-1])
        assert sender.stats["answer"]["new_tokens"] == 20


def test_every_form_of_prompt(served: ServedModel, tokenizer: Tokenizer) -> None:
    options = {"mode": "ar", "max_new_tokens": 5}
    chat = [{"role": "user", "content": "hé"}]
    text = tokenizer.apply_chat_template(chat)
    answers = [
        ask(served, {"messages": json.dumps(chat), **options}).token_ids,
        ask(served, {"text_input": text, **options}).token_ids,
        ask(served, {"input_ids": tokenizer.encode(text), **options}).token_ids,
    ]
    assert answers[0] == answers[1] == answers[2]


def test_one_response_when_asked(served: ServedModel) -> None:
    sender = ask(served, {"text_input": "a", "mode": "ar", "max_new_tokens": 20, "stream": False})
    assert len(sender.token_ids) == 20
    assert len(sender.responses) == 1
    assert sender.stats["runs"] == {"prefill": 1, "decode": 19}


def test_a_slow_server_gets_fewer_responses(served: ServedModel) -> None:
    slow = request(LONG)
    send, pause = slow.sender.send, threading.Event()

    def wait_and_send(*arguments: Any, **more: Any) -> None:
        pause.wait(0.05)
        send(*arguments, **more)

    slow.sender.send = wait_and_send  # type: ignore[method-assign]
    served.execute([slow])
    assert len(slow.sender.token_ids) == 150
    assert len(slow.sender.responses) < 20


@pytest.mark.parametrize(
    ("tensors", "parameters", "named"),
    [
        ({"mode": "fast"}, {}, "mode: got 'fast', allowed: ar"),
        ({"max_new_tokens": 0}, {}, "max_new_tokens: got 0"),
        ({"mode": "ar", "threshold": 0.5}, {}, "threshold: got 0.5"),
        ({"threshold": float("nan")}, {}, "threshold: got nan"),
        ({"block_length": 17}, {}, "block_length: got 17, allowed: 2 to 16"),
        ({"text_input": "a" * 160}, {}, "text_input: got '160 tokens', allowed: 1 to 159"),
        ({"text_input": b"\xff"}, {}, "text_input: got .*UTF-8"),
        ({"text_input": ["a", "b"]}, {}, "text_input: got '2 values', allowed: one value"),
        ({"input_ids": [1]}, {}, "text_input: got 'text_input and input_ids', allowed: exactly one"),
        ({"stop": ["x", ""]}, {}, "stop: got"),
        ({"timeout_s": -1.0}, {}, "timeout_s: got -1.0"),
        ({"timeout_s": float("nan")}, {}, "timeout_s: got nan"),
        ({"logit_bias": "{1: 2}"}, {}, "logit_bias: got .* JSON"),
        ({"logit_bias": '{"x": 2}'}, {}, "logit_bias: got .* token ids"),
        ({"seed": -1}, {}, "seed: got -1"),
        ({"temperature": -1.0}, {}, "temperature: got -1.0"),
        ({"acceptance": "never"}, {}, "acceptance: got 'never', allowed: coupled or rejection"),
        ({}, {"max_tokens": 3}, "max_tokens: got '3', allowed: only the inputs text_input"),
    ],
)
def test_errors_name_the_field(served: ServedModel, tensors: dict[str, Any], parameters: dict[str, Any], named: str) -> None:
    sender = ask(served, {"text_input": "a", **tensors}, **parameters)
    assert re.match(named, sender.error.message), sender.error.message
    assert sender.error.code == "invalid"


@pytest.mark.parametrize(
    ("tensors", "named"),
    [
        ({}, "text_input: got 'no prompt'"),
        ({"messages": "[]"}, "messages: got"),
        ({"messages": '{"role": "user"}'}, "messages: got"),
        ({"messages": '[{"role": "user"}]'}, "messages[0].content: got"),
        ({"messages": "no json"}, "messages: got"),
        ({"messages": "[" * 100_000}, "messages: got"),
        ({"input_ids": []}, "input_ids: got"),
        ({"input_ids": [400]}, "input_ids: got 400"),
        ({"input_ids": [-1]}, "input_ids: got -1"),
    ],
)
def test_errors_name_the_prompt(served: ServedModel, tensors: dict[str, Any], named: str) -> None:
    assert ask(served, tensors).error.message.startswith(named)


def test_leaving_frees_the_slot(served: ServedModel, session: GatedSession, backend: FakeBackend) -> None:
    session.gate.clear()
    running = [ask(served, LONG) for _ in range(4)]
    waiting = ask(served, LONG)
    eventually(lambda: len(served._sender._open) == 5)
    for sender in [*running[:2], waiting]:
        sender.is_left = True
    # The engine takes all requests, and stands still until it was asked to end those that were left.
    session.close_gate_after(2)
    session.gate.set()
    eventually(lambda: sum(served._sender._open.values()) == 3)
    session.open_gate()
    assert {sender.error.code for sender in [*running[:2], waiting]} == {"cancelled"}
    assert [len(sender.token_ids) for sender in running[2:]] == [150, 150]
    eventually(lambda: backend.total("free_slots") == 4 and backend.total("requests_total", reason="cancelled") == 3)
    assert served._sender.num_open == 0


def test_a_full_queue_is_busy(backend: FakeBackend, session: GatedSession, tokenizer: Tokenizer) -> None:
    settings = dataclasses.replace(SETTINGS, engine=EngineOptions(max_active=1, max_waiting=1, prefix_rows=0))
    model = ServedModel(backend, TriModeEngine(session, tokenizer, settings.engine), settings, {})
    session.gate.clear()
    senders = [ask(model, LONG) for _ in range(6)]
    session.gate.set()
    for sender in senders:
        sender.wait()
    refused = [sender.responses[-1].error for sender in senders if sender.responses[-1].error is not None]
    assert 3 <= len(refused) <= 5
    assert {error.code for error in refused} == {"unavailable"}
    model.close()
    assert backend.total("refused_total", reason="busy") == len(refused)


def test_closing_answers_what_is_there(served: ServedModel, session: GatedSession) -> None:
    session.gate.clear()
    senders = [ask(served, LONG) for _ in range(9)]
    closing = threading.Thread(target=served.close)
    closing.start()
    session.gate.set()
    closing.join(timeout=20)
    assert not closing.is_alive()
    assert [len(sender.token_ids) for sender in senders] == [150] * 9
    assert ask_after_close(served) == "unavailable"


def ask_after_close(served: ServedModel) -> str:
    """The sender's thread has ended, so its part is played here."""
    late = request(LONG)
    served.execute([late])
    stream = next(iter(served._sender._open))
    stream.send(served._backend)
    del served._sender._open[stream]
    return str(late.sender.error.code)


def test_senders_are_let_go(served: ServedModel) -> None:
    """The server keeps an old version loaded while a sender exists, so none may wait for the garbage collector."""
    gc.collect()
    gc.disable()
    try:
        held = []
        for tensors in (
            {"text_input": "a", "max_new_tokens": 2},
            {"text_input": "a", "mode": "fast"},
            {"text_input": "a" * 160},
        ):
            sent = request(tensors)
            served.execute([sent])
            sent.sender.wait()
            held.append(weakref.ref(sent.sender))
            del sent
        eventually(lambda: not any(reference() for reference in held))
    finally:
        gc.enable()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_failed_run_ends_all_with_the_reason(served: ServedModel, session: GatedSession) -> None:
    session.gate.clear()
    senders = [ask(served, LONG) for _ in range(6)]
    session.is_broken = True
    session.gate.set()
    for sender in [*senders, ask(served, LONG)]:
        assert sender.error.code == "unavailable"
        assert "the device is gone" in sender.error.message


def test_metrics_tell_what_happened(served: ServedModel, backend: FakeBackend) -> None:
    speculating = {"text_input": "ab", "mode": "self_speculation", "max_new_tokens": 30, "ignore_eos": True}
    ask(served, speculating).wait()
    ask(served, {"text_input": "ab", "mode": "fast"}).wait()
    eventually(lambda: backend.total("tokens_total") == 30)
    assert backend.total("requests_total", reason="length", model="m") == 1
    assert backend.total("verify_runs_total") == backend.total("request_runs_total", role="verify") > 0
    assert backend.total("refused_total", reason="invalid") == 1
    observed = [metric.observed for (name, _), metric in backend.metrics.items() if "tokens_per_forward" in name]
    assert [len(values) for values in observed] == [1]


def test_tokens_alone_need_no_tokenizer(backend: FakeBackend, session: GatedSession) -> None:
    settings = dataclasses.replace(SETTINGS, variant=Variant.TOKENS, end_think_token_id=13, warm_up=True)
    engine = TriModeEngine(session, TokenOnly(settings.end_think_token_id), settings.engine)
    model = ServedModel(backend, engine, settings, {})
    sent = request({"input_ids": [5, 6], "mode": "ar", "max_new_tokens": 4, "max_thinking_tokens": 2}, Variant.TOKENS)
    refused = request({"text_input": "a"}, Variant.TOKENS)
    model.execute([sent, refused])
    assert sent.sender.token_ids == [112, 113, 13, 115]
    assert "text_output" not in sent.sender.responses[0].values
    assert refused.sender.error.message.startswith("input_ids: got 'no prompt'")
    model.close()
    # What the warm-up emitted does not count.
    assert backend.total("tokens_total") == 4


def test_tensors_that_arrive_empty_are_found() -> None:
    class Old(FakeBackend):
        class Tensor:  # type: ignore[assignment]
            def __init__(self, name: str, array: np.ndarray) -> None:
                pass

            def as_numpy(self) -> np.ndarray:
                return np.zeros(0)

    check_tensors(FakeBackend())
    with pytest.raises(BundleError, match="numpy<2"):
        check_tensors(Old())

"""Parts of the server alone: bodies become options, answers are split, tokens have bytes, metrics are well formed."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nemodiff_trt.errors import InvalidInputError
from nemodiff_trt.runtime.answer import StreamEvent
from nemodiff_trt.runtime.events import RowStep
from nemodiff_trt.runtime.options import GenerationOptions
from nemodiff_trt.runtime.sampling import SamplingOptions
from nemodiff_trt.runtime.server.choices import Choice
from nemodiff_trt.runtime.server.errors import ApiError
from nemodiff_trt.runtime.server.metrics import Histogram, ServerMetrics
from nemodiff_trt.runtime.server.options import ServerOptions
from nemodiff_trt.runtime.server.request_bodies import Job, ReadBody, read_chat, read_completion
from nemodiff_trt.runtime.server.request_fields import OPTION_FIELDS
from nemodiff_trt.runtime.server.token_texts import TokenTexts
from nemodiff_trt.runtime.streaming import TextStream
from nemodiff_trt.tokenizer import Tokenizer
from nemodiff_trt.vocabulary import Role
from support.checkpoints import write_tokenizer

SERVER = ServerOptions(model_name="tiny", max_tokens=500)
DEFAULTS = GenerationOptions(max_new_tokens=500)
HELLO = [{"role": "user", "content": "hello"}]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder)
    return Tokenizer.from_dir(folder)


def chat(**fields: Any) -> Job:
    return read_chat(json.dumps({"messages": HELLO, **fields}).encode(), DEFAULTS, SERVER)


def refusal(**fields: Any) -> ApiError:
    with pytest.raises(ApiError) as caught:
        chat(**fields)
    return caught.value


def status_of(read: ReadBody, body: Any) -> int:
    try:
        return 200 if read(json.dumps(body).encode(), DEFAULTS, SERVER).prompts else 500
    except ApiError as error:
        return error.status


class TestBodies:
    def test_every_option_can_be_asked_for(self) -> None:
        fields = {field.name for kind in (GenerationOptions, SamplingOptions) for field in dataclasses.fields(kind)}
        # These two have fields of their own in the API.
        assert {field.option for field in OPTION_FIELDS} == fields - {"sampling", "logprobs"}

    def test_fields_become_options(self) -> None:
        job = chat(
            max_completion_tokens=9, stop="a", temperature=0.5, top_p=0.9, seed=3, logit_bias={"7": -1}, mode="diffusion",
            block_length=8, threshold=0.7, logprobs=True, top_logprobs=2, user="me", store=False,
        )  # fmt: skip
        sampling = SamplingOptions(temperature=0.5, top_p=0.9, seed=3, logit_bias={7: -1.0}, logprobs=2)
        wanted: Any = {"mode": "diffusion", "max_new_tokens": 9, "stop": ("a",), "block_length": 8, "threshold": 0.7}
        assert job.options == GenerationOptions(**wanted, sampling=sampling)

    def test_null_is_as_good_as_absent(self) -> None:
        assert chat(**{field.name: None for field in OPTION_FIELDS}, tools=None, logprobs=None) == chat()

    def test_thinking_as_other_servers_take_it(self) -> None:
        assert chat(chat_template_kwargs={"enable_thinking": True}).options.enable_thinking
        assert not chat(chat_template_kwargs={"enable_thinking": True}, enable_thinking=False).options.enable_thinking

    def test_messages_of_parts_and_older_roles(self) -> None:
        parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
        sent = [{"role": "developer", "content": "x"}, {"role": "user", "content": parts}]
        # As the client gives an answer back.
        sent.append({"role": "assistant", "content": "y", "refusal": None, "tool_calls": None, "reasoning_content": "z"})
        (prompt,) = chat(messages=sent).prompts
        wanted = [("system", "x"), ("user", "ab"), ("assistant", "y")]
        assert [(message["role"], message["content"]) for message in prompt] == wanted  # type: ignore[index, call-overload]

    @pytest.mark.parametrize(
        ("fields", "param"),
        [
            ({"max_tokens": 501}, "max_tokens"),
            ({"max_tokens": 4, "max_completion_tokens": 5}, "max_completion_tokens"),
            ({"max_tokens": True}, "max_tokens"),
            ({"stop": [""]}, "stop"),
            ({"stop": ["a"] * 17}, "stop"),
            ({"logit_bias": {"a": 1}}, "logit_bias"),
            ({"top_logprobs": 1}, "top_logprobs"),
            ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
            ({"stream_options": {"include_usage": True}}, "stream_options"),
            ({"trace": True}, "trace"),
            ({"tools": [{}]}, "tools"),
            ({"messages": []}, "messages"),
            ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content[0].type"),
            ({"messages": [{"role": "user"}]}, "messages[0].content"),
            ({"response_format": {"type": "json_object"}}, "response_format.type"),
            ({"seed": -1}, "seed"),
        ],
    )
    def test_refusals_name_the_field(self, fields: dict[str, Any], param: str) -> None:
        error = refusal(**fields)
        assert error.status == 400
        assert error.param == param

    def test_a_long_value_is_not_repeated(self) -> None:
        assert len(refusal(mode="x" * 10_000).to_dict()["error"]["message"]) < 600

    @settings(max_examples=80, deadline=None)
    @given(
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(
                    st.sampled_from([*(field.name for field in OPTION_FIELDS), "prompt", "n", "echo"]), inner, max_size=4
                )
            ),
            max_leaves=12,
        )
    )
    def test_whatever_comes_is_read_or_refused(self, body: Any) -> None:
        for read in (read_chat, read_completion):
            for wrapped in (body, {"prompt": "a", "messages": HELLO, "max_tokens": body}, {"prompt": body, "messages": body}):
                assert status_of(read, wrapped) in (200, 400, 404)

    @given(st.binary(max_size=30))
    def test_bytes_are_refused(self, body: bytes) -> None:
        with pytest.raises(ApiError):
            read_chat(body, DEFAULTS, SERVER)

    def test_options_of_the_server_are_checked(self) -> None:
        for wrong in ({"max_answers": 0}, {"timeout_s": 0.0}, {"api_keys": ("",)}, {"model_name": ""}):
            with pytest.raises(InvalidInputError):
                dataclasses.replace(SERVER, **wrong)  # type: ignore[arg-type]


class TestChoice:
    @settings(max_examples=60, deadline=None)
    @given(st.data())
    def test_thought_and_rest_however_they_come(self, tokenizer: Tokenizer, data: st.DataObject) -> None:
        text = st.text("aé€\n", max_size=6)
        thought, rest = data.draw(text, label="thought"), data.draw(text, label="rest")
        tokens = [*tokenizer.encode(thought), 13, *tokenizer.encode(rest)]
        choice, stream, told = Choice(tokenizer, is_thinking=True, keeps_ids=True), TextStream(tokenizer), ["", ""]
        while tokens:
            count = data.draw(st.integers(1, len(tokens)), label="tokens of a run")
            run, tokens = tuple(tokens[:count]), tokens[count:]
            shown = "".join(stream.push(token) for token in run) + ("" if tokens else stream.flush())
            piece = choice.push(StreamEvent(Role.VERIFY, shown, run, RowStep(list(run))))
            told[0] += piece.reasoning
            told[1] += piece.content
            assert piece.token_ids == run
        assert told == [thought, rest]
        assert choice.reasoning_tokens == len(tokenizer.encode(thought)) + 1

    def test_an_answer_without_thought_has_only_content(self, tokenizer: Tokenizer) -> None:
        choice = Choice(tokenizer, is_thinking=False, keeps_ids=False)
        piece = choice.push(StreamEvent(Role.DECODE, "a", (200,), RowStep([200])))
        assert (piece.content, piece.reasoning, piece.token_ids) == ("a", "", None)


class TestTokenTexts:
    def test_bytes_of_all_tokens_of_a_text_are_its_bytes(self, tokenizer: Tokenizer) -> None:
        texts, text = TokenTexts(tokenizer), "the €! ü\n\x00 日本"
        parts = [texts.utf8(token) for token in tokenizer.encode(text)]
        assert bytes(byte for part in parts for byte in part or ()) == text.encode()
        # A part of a character has bytes and no text.
        (first, *_) = tokenizer.encode("日")
        assert (texts.text(first), texts.utf8(first)) == ("\N{REPLACEMENT CHARACTER}", ["日".encode()[0]])
        assert texts.text(11) == "<|im_end|>"


class TestMetrics:
    def test_histogram_counts_up_to_each_bound(self) -> None:
        histogram = Histogram((1.0, 2.0))
        for value in (0.5, 1.0, 1.5, 7.0):
            histogram.add(value)
        assert histogram.lines("h", 'mode="ar"') == [
            'h_bucket{mode="ar",le="1"} 2',
            'h_bucket{mode="ar",le="2"} 3',
            'h_bucket{mode="ar",le="+Inf"} 4',
            'h_sum{mode="ar"} 10',
            'h_count{mode="ar"} 4',
        ]

    def test_every_sample_has_a_type(self) -> None:
        metrics = ServerMetrics()
        metrics.add_request("/health", 200)
        metrics.add_piece(0.1, is_first=True)
        names = "tokens prompt_tokens reused_prompt_tokens steps step_s engine_runs engine_s waiting active free_slots"
        engine: dict[str, Any] = dict.fromkeys(names.split(), 1)
        engine |= {"request_runs": {"verify": 2}, "finished": {"eos": 1}, "accepted": {"0": 1, "5": 2}, "decisions": {"1": 3}}
        lines = metrics.render(engine).splitlines()
        typed = {line.split(" ")[2] for line in lines if line.startswith("# TYPE")}
        samples = [line for line in lines if not line.startswith("#")]
        for line in samples:
            name = line.partition("{")[0].partition(" ")[0]
            assert name in typed or name.rsplit("_", 1)[0] in typed
            float(line.rpartition(" ")[2])
        assert "nemodiff_accepted_drafts_sum 10" in samples
        assert 'nemodiff_http_requests_total{path="/health",status="200"} 1' in samples
        assert "nemodiff_up 0" in metrics.render(None).splitlines()


def test_page_files_are_packaged(tmp_path: Path) -> None:
    from nemodiff_trt.runtime.server.page_files import read_page_files

    files = {page.path: page for page in read_page_files()}
    assert {"/", "/page/app.js", "/page/lane.js", "/page/stream.js", "/page/style.css", "/page/icon.svg"} == set(files)
    assert files["/page/app.js"].media_type == "text/javascript"

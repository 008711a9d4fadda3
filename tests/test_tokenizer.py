"""Encoding, chat template and streaming of the tokenizer."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nemodiff_trt.errors import CheckpointError, InvalidInputError
from nemodiff_trt.tokenizer import IncrementalDecoder, Tokenizer
from support.checkpoints import FIRST_BYTE_ID, MERGES, SPECIAL_IDS, write_tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(directory)
    return directory


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Tokenizer:
    return Tokenizer.from_dir(folder)


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def test_special_tokens_have_the_published_ids(tokenizer: Tokenizer) -> None:
    assert {text: tokenizer.token_id(text) for text in SPECIAL_IDS} == SPECIAL_IDS
    assert (tokenizer.think_token_id, tokenizer.end_think_token_id) == (12, 13)
    assert tokenizer.token_id("no such token") is None
    assert tokenizer.encode("<|im_start|>the<|im_end|>")[0::2] == [10, 11]


def test_encode_adds_no_token_and_merges(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode("") == []
    assert len(tokenizer.encode("the")) == 1
    assert tokenizer.encode("the")[0] >= FIRST_BYTE_ID + 256


def test_special_tokens_are_left_out_of_text_unless_asked_for(tokenizer: Tokenizer) -> None:
    ids = [1, *tokenizer.encode("hi"), 12, 11]
    assert tokenizer.decode(ids) == "hi<think>"
    assert tokenizer.decode(ids, skip_special_tokens=False) == "<s>hi<think><|im_end|>"


@given(st.text())
@settings(deadline=None)
def test_text_survives_a_round_trip(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text), skip_special_tokens=False) == text


@given(st.data())
@settings(deadline=None)
def test_streamed_pieces_equal_the_whole_text(tokenizer: Tokenizer, data: st.DataObject) -> None:
    # Parts of characters beside each other, broken anywhere, between tokens that are no text.
    parts = st.sampled_from([*tokenizer.encode("a€😀é"), 1, 11, 12])
    ids = data.draw(st.lists(st.one_of(parts, st.integers(0, FIRST_BYTE_ID + 255 + len(MERGES)))))
    decoder = IncrementalDecoder(tokenizer)
    pieces, position = [], 0
    while position < len(ids):
        count = data.draw(st.integers(1, len(ids) - position))
        pieces.append(decoder.push(ids[position : position + count]))
        position += count
    assert not any(piece.endswith("\ufffd") for piece in pieces)
    assert "".join(pieces) + decoder.flush() == tokenizer.decode(ids)


def test_a_character_appears_when_its_last_byte_does(tokenizer: Tokenizer) -> None:
    decoder = IncrementalDecoder(tokenizer)
    ids = tokenizer.encode("a€😀")
    assert len(ids) == 1 + 2 + 4
    assert [decoder.push([token]) for token in ids] == ["a", "", "€", "", "", "", "😀"]
    assert decoder.flush() == ""


def test_an_unfinished_character_is_replaced_at_the_end(tokenizer: Tokenizer) -> None:
    decoder = IncrementalDecoder(tokenizer)
    assert decoder.push(tokenizer.encode("😀")[:2]) == ""
    assert decoder.flush() == "\ufffd"
    assert decoder.flush() == ""


def test_chat_template_without_and_with_thinking(tokenizer: Tokenizer) -> None:
    messages = [{"role": "user", "content": "2+2?"}]
    start = "<|im_start|>system\n<|im_end|>\n<|im_start|>user\n2+2?<|im_end|>\n"
    assert tokenizer.apply_chat_template(messages) == start + "<|im_start|>assistant\n<think></think>"
    assert tokenizer.apply_chat_template(messages, enable_thinking=True) == start + "<|im_start|>assistant\n<think>\n"
    assert tokenizer.apply_chat_template(messages, add_generation_prompt=False) == start
    assert tokenizer.encode(tokenizer.apply_chat_template(messages))[-2:] == [12, 13]


def test_chat_template_keeps_content_as_written(tokenizer: Tokenizer) -> None:
    content = "<b>{{ 1 + 1 }} & {% raw %}\n"
    assert content in tokenizer.apply_chat_template([{"role": "system", "content": content}])


@pytest.mark.parametrize(
    ("messages", "field"),
    [
        ([], "messages"),
        ("hello", "messages"),
        ([{"role": "user"}], r"messages\[0\].content"),
        ([{"role": "user", "content": 3}], r"messages\[0\].content"),
        (["hello"], r"messages\[0\].role"),
        ([{"role": "wizard", "content": "x"}], "unknown role wizard"),
    ],
)
def test_malformed_chats_are_refused(tokenizer: Tokenizer, messages: object, field: str) -> None:
    with pytest.raises(InvalidInputError, match=field):
        tokenizer.apply_chat_template(messages)  # type: ignore[arg-type]


def test_a_template_cannot_reach_python_internals(copy: Path) -> None:
    (copy / "chat_template.jinja").write_text("{{ messages.__class__.__mro__[1].__subclasses__() }}")
    with pytest.raises(CheckpointError, match="chat template"):
        Tokenizer.from_dir(copy).apply_chat_template([{"role": "user", "content": "x"}])


def test_a_template_cannot_change_the_messages(copy: Path) -> None:
    (copy / "chat_template.jinja").write_text("{{ messages.append(1) }}")
    with pytest.raises(CheckpointError, match="chat template"):
        Tokenizer.from_dir(copy).apply_chat_template([{"role": "user", "content": "x"}])


def test_template_from_the_tokenizer_configuration(copy: Path) -> None:
    (copy / "chat_template.jinja").unlink()
    assert not Tokenizer.from_dir(copy).has_chat_template
    with pytest.raises(CheckpointError, match="missing"):
        Tokenizer.from_dir(copy).apply_chat_template([{"role": "user", "content": "x"}])
    template = "{{ bos_token }}{{ messages[0] | tojson }}"
    for source in (template, [{"name": "tool_use", "template": "no"}, {"name": "default", "template": template}]):
        (copy / "tokenizer_config.json").write_text(json.dumps({"chat_template": source, "bos_token": {"content": "<s>"}}))
        rendered = Tokenizer.from_dir(copy).apply_chat_template([{"role": "user", "content": "<é>"}])
        assert rendered == '<s>{"role": "user", "content": "<é>"}'


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer.json", "{", "a valid tokenizer"),
        ("tokenizer.json", None, "a folder with this file"),
        ("tokenizer_config.json", "[]", "a JSON object"),
        ("chat_template.jinja", "{% if %}", "a valid Jinja template"),
    ],
)
def test_damaged_files_are_named(copy: Path, name: str, content: str | None, message: str) -> None:
    if content is None:
        (copy / name).unlink()
    else:
        (copy / name).write_text(content)
    with pytest.raises(CheckpointError, match=message) as caught:
        Tokenizer.from_dir(copy)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("ids", [[-1], [2**32]])
def test_impossible_ids_are_refused(tokenizer: Tokenizer, ids: list[int]) -> None:
    with pytest.raises(InvalidInputError, match="token_ids"):
        tokenizer.decode(ids)


def test_half_a_surrogate_pair_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(InvalidInputError, match="surrogates"):
        tokenizer.encode("a\ud800")

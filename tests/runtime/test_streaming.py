"""Streamed text: pieces join to the whole, whatever the characters, tokens and stop strings."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nemodiff_trt.runtime.streaming import TextStream
from nemodiff_trt.tokenizer import Tokenizer
from support.checkpoints import TINY_VOCAB_SIZE, write_tokenizer

QUICK = settings(deadline=None, max_examples=150)
# Few letters, so that stop strings begin, almost match and overlap often; some need two to four bytes.
texts = st.text("ab€𝄞é", max_size=30)
stops = st.lists(st.text("ab€𝄞é", min_size=1, max_size=4), max_size=3).map(tuple)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    directory = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(directory)
    return Tokenizer.from_dir(directory)


def pieces_of(tokenizer: Tokenizer, token_ids: list[int], stop: tuple[str, ...]) -> tuple[list[str], int]:
    """Pieces until a stop string, and how many tokens were used."""
    stream = TextStream(tokenizer, stop)
    pieces = []
    for used, token in enumerate(token_ids, start=1):
        pieces.append(stream.push(token))
        if stream.is_stopped:
            return pieces, used
    return [*pieces, stream.flush()], len(token_ids)


def cut_at_stop(text: str, stop: tuple[str, ...]) -> str:
    """Character by character: text before the first stop string that is completed."""
    for end in range(len(text) + 1):
        begins = [end - len(word) for word in stop if text[:end].endswith(word)]
        if begins:
            return text[: min(begins)]
    return text


@QUICK
@given(text=texts, stop=stops)
def test_pieces_join_to_the_text_before_a_stop_string(tokenizer: Tokenizer, text: str, stop: tuple[str, ...]) -> None:
    pieces, used = pieces_of(tokenizer, tokenizer.encode(text), stop)
    assert "".join(pieces) == cut_at_stop(text, stop)
    # The tokens used are just enough to complete the stop string.
    before = tokenizer.decode(tokenizer.encode(text)[: used - 1])
    assert cut_at_stop(before, stop) == before or used == 0


@QUICK
@given(token_ids=st.lists(st.integers(0, TINY_VOCAB_SIZE - 17), max_size=40), stop=stops)
def test_any_tokens_join_to_their_decoded_text(tokenizer: Tokenizer, token_ids: list[int], stop: tuple[str, ...]) -> None:
    whole = tokenizer.decode(token_ids)
    assert "".join(pieces_of(tokenizer, token_ids, ())[0]) == whole
    assert "".join(pieces_of(tokenizer, token_ids, stop)[0]) == cut_at_stop(whole, stop)


@QUICK
@given(text=st.text(max_size=40))
def test_any_text_without_special_tokens(tokenizer: Tokenizer, text: str) -> None:
    assert "".join(pieces_of(tokenizer, tokenizer.encode(text), ())[0]) == tokenizer.decode(tokenizer.encode(text))


@QUICK
@given(text=texts, stop=stops)
def test_no_piece_has_to_be_taken_back(tokenizer: Tokenizer, text: str, stop: tuple[str, ...]) -> None:
    final = cut_at_stop(text, stop)
    shown = ""
    for piece in pieces_of(tokenizer, tokenizer.encode(text), stop)[0]:
        shown += piece
        assert final.startswith(shown)


def test_stop_string_that_ends_first_wins_within_one_token(tokenizer: Tokenizer) -> None:
    (token,) = tokenizer.encode("the")
    for stop, text in ((("the", "h"), "t"), (("he", "the"), ""), (("e", "h"), "t")):
        stream = TextStream(tokenizer, stop)
        assert stream.push(token) == text
        assert stream.is_stopped


def test_text_is_held_back_only_as_long_as_needed(tokenizer: Tokenizer) -> None:
    stream = TextStream(tokenizer, ("STOP",))
    pieces = [stream.push(token) for token in tokenizer.encode("a ST STOx")]
    assert pieces == ["a", " ", "", "", "ST ", "", "", "", "STOx"]


def test_character_appears_once_complete(tokenizer: Tokenizer) -> None:
    stream = TextStream(tokenizer)
    # A learned pair joins the first two of three bytes.
    assert [stream.push(token) for token in tokenizer.encode("€𝄞")] == ["", "€", "", "", "", "𝄞"]


def test_incomplete_character_at_the_end_may_complete_a_stop_string(tokenizer: Tokenizer) -> None:
    stream = TextStream(tokenizer, ("b\N{REPLACEMENT CHARACTER}",))
    assert "".join(stream.push(token) for token in tokenizer.encode("ab€")[:-1]) == "a"
    assert stream.flush() == ""
    assert stream.is_stopped


def test_nothing_comes_after_a_stop_string(tokenizer: Tokenizer) -> None:
    stream = TextStream(tokenizer, ("b",))
    assert "".join(stream.push(token) for token in tokenizer.encode("abcd")) + stream.flush() == "a"

"""The live view of a chat: which token is shown as what, run by run."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.text import Text

from nemodiff_trt.runtime.answer import StreamEvent
from nemodiff_trt.runtime.cli.answer_view import ACCEPTED, COMMITTED, DRAFTED, MASK, OWN, REFUSED, AnswerView
from nemodiff_trt.runtime.events import RowStep
from nemodiff_trt.runtime.tri_mode_lm import TriModeLM
from nemodiff_trt.tokenizer import Tokenizer
from nemodiff_trt.vocabulary import Role
from support.checkpoints import write_tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder)
    return Tokenizer.from_dir(folder)


def ids(tokenizer: Tokenizer, text: str) -> list[int]:
    return tokenizer.encode(text)


def event(role: Role, emitted: list[int], **step: object) -> StreamEvent:
    return StreamEvent(role, "", tuple(emitted), RowStep(emitted, **step))  # type: ignore[arg-type]


def styled(text: Text) -> list[tuple[str, str]]:
    """(characters, style) in order, neighbours of the same style joined."""
    pieces: list[tuple[str, str]] = []
    for index, character in enumerate(text.plain):
        style = next((str(span.style) for span in text.spans if span.start <= index < span.end), "")
        if pieces and pieces[-1][1] == style:
            pieces[-1] = (pieces[-1][0] + character, style)
        else:
            pieces.append((character, style))
    return pieces


def test_self_speculation(tokenizer: Tokenizer) -> None:
    view = AnswerView(tokenizer, block_length=4)
    drafted = ids(tokenizer, "bxy")
    view.push(event(Role.PREFILL, ids(tokenizer, "a")))
    view.push(event(Role.DRAFT, [], drafted=drafted))
    assert styled(view.text()) == [("a", ""), ("bxy", DRAFTED)]
    view.push(event(Role.VERIFY, ids(tokenizer, "bc"), drafted=drafted, accepted=1))
    assert styled(view.text()) == [("a", ""), ("b", ACCEPTED), ("c", OWN), ("xy", REFUSED)]
    view.push(event(Role.DRAFT, [], drafted=ids(tokenizer, "d")))
    assert styled(view.text()) == [("a", ""), ("b", ACCEPTED), ("c", OWN), ("d", DRAFTED)]


def test_diffusion(tokenizer: Tokenizer) -> None:
    view = AnswerView(tokenizer, block_length=4)
    a, b, c, d, e = ids(tokenizer, "abcde")
    view.push(event(Role.PREFILL, [a]))
    view.push(event(Role.DENOISE, [], committed=[(2, c)]))
    assert view.text().plain == f"a{MASK}c{MASK}"
    view.push(event(Role.DENOISE, [b, c], committed=[(1, b)]))
    assert styled(view.text()) == [("a", ""), ("bc", COMMITTED), (MASK, DRAFTED)]
    view.push(event(Role.DENOISE, [d], committed=[(3, d)]))
    view.push(event(Role.VERIFY, [e]))
    assert view.text().plain == "abcde"
    view.push(event(Role.DENOISE, [], committed=[(3, a)]))
    assert view.text().plain == f"abcde{MASK}{MASK}a"


@pytest.mark.parametrize("mode", ["ar", "diffusion", "self_speculation"])
def test_at_the_end_the_answer_is_left(tiny_bundle_dir: Path, mode: str) -> None:
    model = TriModeLM.from_bundle(tiny_bundle_dir, num_threads=1)
    view = AnswerView(model.tokenizer, block_length=8)
    events = list(model.stream("hello", mode=mode, max_new_tokens=20, block_length=8))
    for each in events:
        view.push(each)
    # Characters that tokens only complete together may be missing at the very end.
    assert events[-1].result is not None
    assert events[-1].result.text.startswith(view.text().plain)
    assert len(view.text().plain) > len(events[-1].result.text) - 4

"""The two shapes of answers of the OpenAI API: chats and completions, whole and in pieces."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from nemodiff_trt.runtime.sampling import TokenLogprobs
from nemodiff_trt.runtime.server.choices import FINISH_REASONS, Piece, details_of
from nemodiff_trt.runtime.server.token_texts import TokenTexts


@dataclass(frozen=True, slots=True)
class Head:
    """What all bodies of one request begin with."""

    id: str
    created: int
    model: str
    fingerprint: str

    def body(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
            "choices": choices,
        }


class AnswerFormat(Protocol):
    """One format, for one request."""

    head: Head

    def piece(self, index: int, piece: Piece) -> dict[str, Any]:
        """Body of a piece of answer `index`."""
        ...

    def whole(self, pieces: list[Piece]) -> dict[str, Any]:
        """Body of all answers, each as one piece."""
        ...

    def closing(self, usage: dict[str, Any]) -> dict[str, Any]:
        """Body of the last piece of a stream."""
        ...


class ChatFormat:
    """`chat.completion` and its chunks."""

    __slots__ = ("_begun", "_texts", "head")

    def __init__(self, head: Head, texts: TokenTexts) -> None:
        self.head = head
        self._texts = texts
        # Answers whose role was told.
        self._begun: set[int] = set()

    def piece(self, index: int, piece: Piece) -> dict[str, Any]:
        delta: dict[str, Any] = {}
        if index not in self._begun:
            self._begun.add(index)
            delta = {"role": "assistant", "content": ""}
        if piece.reasoning:
            delta["reasoning_content"] = piece.reasoning
        if piece.content:
            delta["content"] = piece.content
        return self.head.body("chat.completion.chunk", [self._choice(index, piece, "delta", delta)])

    def whole(self, pieces: list[Piece]) -> dict[str, Any]:
        choices = []
        for index, piece in enumerate(pieces):
            message = {"role": "assistant", "content": piece.content, "refusal": None}
            if piece.reasoning:
                message["reasoning_content"] = piece.reasoning
            choices.append(self._choice(index, piece, "message", message))
        return self.head.body("chat.completion", choices)

    def closing(self, usage: dict[str, Any]) -> dict[str, Any]:
        return self.head.body("chat.completion.chunk", []) | {"usage": usage}

    def _choice(self, index: int, piece: Piece, name: str, message: dict[str, Any]) -> dict[str, Any]:
        logprobs = {"content": [self._entry(entry) for entry in piece.logprobs], "refusal": None} if piece.logprobs else None
        return {"index": index, name: message, "logprobs": logprobs} | _end(piece)

    def _entry(self, entry: TokenLogprobs) -> dict[str, Any]:
        top = [self._token(token, logprob) for token, logprob in entry.top]
        return self._token(entry.token, entry.logprob) | {"top_logprobs": top}

    def _token(self, token: int, logprob: float) -> dict[str, Any]:
        return {"token": self._texts.text(token), "logprob": logprob, "bytes": self._texts.utf8(token)}


class CompletionFormat:
    """`text_completion`; its pieces have the same shape. With `prompts`, each answer begins with its own."""

    __slots__ = ("_offsets", "_prompts", "_texts", "head")

    def __init__(self, head: Head, texts: TokenTexts, prompts: list[str] | None = None) -> None:
        self.head = head
        self._texts = texts
        self._prompts = dict(enumerate(prompts or ()))
        # Characters of every answer so far, by the texts of its tokens.
        self._offsets: dict[int, int] = {}

    def piece(self, index: int, piece: Piece) -> dict[str, Any]:
        return self.head.body("text_completion", [self._choice(index, piece)])

    def whole(self, pieces: list[Piece]) -> dict[str, Any]:
        return self.head.body("text_completion", [self._choice(index, piece) for index, piece in enumerate(pieces)])

    def closing(self, usage: dict[str, Any]) -> dict[str, Any]:
        return self.head.body("text_completion", []) | {"usage": usage}

    def _choice(self, index: int, piece: Piece) -> dict[str, Any]:
        text = self._prompts.pop(index, "") + piece.reasoning + piece.content
        logprobs = self._logprobs(index, piece.logprobs) if piece.logprobs else None
        return {"index": index, "text": text, "logprobs": logprobs} | _end(piece)

    def _logprobs(self, index: int, entries: list[TokenLogprobs]) -> dict[str, Any]:
        tokens, offsets, offset = [self._texts.text(entry.token) for entry in entries], [], self._offsets.get(index, 0)
        for text in tokens:
            offsets.append(offset)
            offset += len(text)
        self._offsets[index] = offset
        tops = [{self._texts.text(token): logprob for token, logprob in entry.top} for entry in entries]
        return {
            "tokens": tokens,
            "token_logprobs": [entry.logprob for entry in entries],
            "top_logprobs": tops if any(tops) else None,
            "text_offset": offsets,
        }


def _end(piece: Piece) -> dict[str, Any]:
    ids = {} if piece.token_ids is None else {"token_ids": list(piece.token_ids)}
    if piece.result is None:
        return ids | {"finish_reason": None}
    return ids | {"finish_reason": FINISH_REASONS[piece.result.finish_reason], "nemodiff": details_of(piece.result)}

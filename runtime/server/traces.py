"""What every engine run did to an answer, for clients that show how it is written."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from nemodiff_trt.runtime.answer import StreamEvent
from nemodiff_trt.runtime.server.token_texts import TokenTexts
from nemodiff_trt.tokenizer import IncrementalDecoder, Tokenizer


class Trace:
    """Follows the events of one answer."""

    __slots__ = ("_decoder", "_texts")

    def __init__(self, tokenizer: Tokenizer, texts: TokenTexts) -> None:
        self._texts = texts
        self._decoder = IncrementalDecoder(tokenizer)

    def push(self, event: StreamEvent) -> dict[str, Any]:
        """The field `trace` of a piece.

        `emitted`: [id, text] of the tokens that were added to the answer; a character of several tokens is in the text of the
        last one, so all texts joined are the answer. `drafted`: [id, text] of guesses, of which `accepted` entered the answer.
        `committed`: [offset in the block, id, text] of the positions that this run fixed. See `RowStep`.
        """
        step = event.step
        emitted = [[int(token), self._decoder.push((token,))] for token in event.token_ids]
        if event.result is not None and emitted:
            emitted[-1][1] = f"{emitted[-1][1]}{self._decoder.flush()}"
        return {
            "role": str(event.role),
            "emitted": emitted,
            "drafted": self._shown(step.drafted),
            "accepted": step.accepted,
            "committed": [[int(offset), int(token), self._texts.text(token)] for offset, token in step.committed],
        }

    def _shown(self, tokens: Iterable[int]) -> list[list[Any]]:
        return [[int(token), self._texts.text(token)] for token in tokens]

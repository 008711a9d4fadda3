"""What an engine run did to an answer, for clients that show how it is written."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from nemodiff_trt.runtime.answer import StreamEvent
from nemodiff_trt.runtime.server.token_texts import TokenTexts


def trace_of(event: StreamEvent, texts: TokenTexts) -> dict[str, Any]:
    """The field `trace` of a piece.

    `emitted`, `drafted`: [id, text] of tokens. `accepted`: how many of the drafted ones were emitted. `committed`:
    [offset in the block, id, text] of the positions that this run fixed. See `RowStep`.
    """
    step = event.step
    return {
        "role": str(event.role),
        "emitted": _tokens(event.token_ids, texts),
        "drafted": _tokens(step.drafted, texts),
        "accepted": step.accepted,
        "committed": [[int(offset), int(token), texts.text(token)] for offset, token in step.committed],
    }


def _tokens(tokens: Iterable[int], texts: TokenTexts) -> list[list[Any]]:
    return [[int(token), texts.text(token)] for token in tokens]

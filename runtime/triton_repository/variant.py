"""What a served model takes and gives: text, or token ids alone."""

from __future__ import annotations

from enum import StrEnum


class Variant(StrEnum):
    """`text` takes texts, chats and token ids; `tokens` takes and gives token ids and needs no tokenizer."""

    TEXT = "text"
    TOKENS = "tokens"

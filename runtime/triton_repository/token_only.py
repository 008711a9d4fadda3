"""A tokenizer's place where there is none: for clients that send and want token ids."""

from __future__ import annotations

from collections.abc import Iterable

from nemodiff_trt.errors import InvalidInputError
from nemodiff_trt.tokenizer import Tokenizer


class TokenOnly(Tokenizer):
    """Knows no text: every id decodes to nothing, and no text can be encoded."""

    __slots__ = ("_end_think_token_id",)

    def __init__(self, end_think_token_id: int | None = None) -> None:
        """`end_think_token_id` is that of `</think>`, for thinking budgets."""
        self._end_think_token_id = end_think_token_id

    @property
    def vocab_size(self) -> int:
        return 0

    @property
    def has_chat_template(self) -> bool:
        return False

    def token_id(self, token: str) -> int | None:
        """Id of `</think>`, the only token it may know."""
        return self._end_think_token_id if token == "</think>" else None

    def encode(self, text: str) -> list[int]:
        """Refuse.

        Raises:
            InvalidInputError: always.
        """
        raise InvalidInputError("text", text, "token ids: this model is served without a tokenizer")

    def decode(self, token_ids: Iterable[int], skip_special_tokens: bool = True) -> str:  # noqa: ARG002
        """Nothing, whatever the ids."""
        return ""

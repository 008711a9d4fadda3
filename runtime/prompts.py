"""From what a user asks to token ids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias, TypeGuard

from nemodiff_trt.config import ModelConfig
from nemodiff_trt.errors import InvalidInputError
from nemodiff_trt.tokenizer import Tokenizer

Message: TypeAlias = Mapping[str, Any]
# A text, a chat, or token ids.
Prompt: TypeAlias = str | Sequence[Message] | Sequence[int]


def is_single_prompt(prompts: Prompt | Sequence[Prompt]) -> TypeGuard[Prompt]:
    """Whether this is one prompt rather than a list of them."""
    return isinstance(prompts, str) or (len(prompts) > 0 and isinstance(prompts[0], (Mapping, int)))


def encode_prompt(
    prompt: Prompt, field: str, tokenizer: Tokenizer, model: ModelConfig, thinking: bool
) -> tuple[str, list[int]]:
    """Text and token ids of a prompt. A text without tokens becomes the begin-of-sequence token.

    Args:
        prompt: text, chat or token ids.
        field: what an error calls it.
        tokenizer: of the model.
        model: bounds the token ids.
        thinking: a chat opens a think section.

    Raises:
        InvalidInputError: the prompt is none of the three forms, or holds an unknown token id.
    """
    if isinstance(prompt, str):
        return prompt, tokenizer.encode(prompt) or [model.bos_token_id]
    given: Any = prompt
    if not isinstance(given, Sequence) or not given:
        raise InvalidInputError(field, given, "a text, a list of messages or a list of token ids")
    if isinstance(given[0], Mapping):
        text = tokenizer.apply_chat_template(given, enable_thinking=thinking)
        return text, tokenizer.encode(text) or [model.bos_token_id]
    token_ids: list[int] = []
    for token in given:
        if not isinstance(token, int) or isinstance(token, bool) or not 0 <= token < model.vocab_size:
            raise InvalidInputError(field, token, f"token ids from 0 to {model.vocab_size - 1}")
        token_ids.append(token)
    return tokenizer.decode(token_ids, skip_special_tokens=False), token_ids

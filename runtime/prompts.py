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
# A prompt as a file of prompts has it: a text, or the messages of a chat.
PromptLine: TypeAlias = str | list[dict[str, Any]]


def is_single_prompt(prompts: Prompt | Sequence[Prompt]) -> TypeGuard[Prompt]:
    """Whether this is one prompt rather than a list of them."""
    return isinstance(prompts, str) or (len(prompts) > 0 and isinstance(prompts[0], (Mapping, int)))


def prompt_of(content: Mapping[str, Any], field: str) -> PromptLine:
    """The one prompt in an object of a file of prompts: its "prompt" or its "messages".

    Raises:
        InvalidInputError: there is none, or both; the error calls it `field`.
    """
    prompt, messages = content.get("prompt"), content.get("messages")
    if isinstance(prompt, str) and messages is None:
        return prompt
    if isinstance(messages, list) and messages and prompt is None:
        return messages
    raise InvalidInputError(field, sorted(content), 'a text in "prompt" or a list in "messages"')


def wants_chat(tokenizer: Tokenizer, use_chat: bool | None, thinking: bool) -> bool:
    """Whether texts become chats: as asked for, otherwise where there is a chat template.

    Raises:
        InvalidInputError: a chat or thinking was asked for without a template.
    """
    if use_chat and not tokenizer.has_chat_template:
        raise InvalidInputError("chat", True, "no-chat: the bundle's tokenizer has no chat template")
    is_chat = tokenizer.has_chat_template if use_chat is None else use_chat
    if thinking and not is_chat:
        raise InvalidInputError("thinking", True, "a chat, whose template opens the think section")
    return is_chat


def as_asked(prompt: PromptLine, is_chat: bool) -> Prompt:
    """The prompt, a text wrapped into a chat of one user message if `is_chat`.

    Raises:
        InvalidInputError: messages were given and no chat is wanted.
    """
    if not isinstance(prompt, str) and not is_chat:
        raise InvalidInputError("messages", "given", "plain prompts only, without a chat template")
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) and is_chat else prompt


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

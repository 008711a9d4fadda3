"""Text in and out: the checkpoint's `tokenizer.json`, its chat template, and decoding of a stream of tokens.

Special tokens follow the published layout: `<s>` 1, `<|im_start|>` 10, `<|im_end|>` 11 (end of sequence), `<think>` 12,
`</think>` 13. A rendered chat carries every special token it needs, so `encode` adds none.
"""

from __future__ import annotations

import json
import operator
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import tokenizers
from jinja2 import Template, TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from nemodiff_trt.config import read_json_object
from nemodiff_trt.errors import CheckpointError, InvalidInputError

TOKENIZER_FILE = "tokenizer.json"
TOKENIZER_CONFIG_FILE = "tokenizer_config.json"
CHAT_TEMPLATE_FILE = "chat_template.jinja"
THINK, END_THINK = "<think>", "</think>"
# The tokenizer library counts ids in 32 bits.
_MAX_TOKEN_ID = 2**32 - 1
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


class Tokenizer:
    """Encodes, decodes and renders chats. Safe to share between threads: nothing changes after construction."""

    __slots__ = ("_special_texts", "_template", "_tokenizer")

    def __init__(
        self, tokenizer: tokenizers.Tokenizer, template: Template | None = None, special_texts: Mapping[str, str] | None = None
    ) -> None:
        """Use `from_dir`. `special_texts` are the names templates may use, such as `bos_token`."""
        self._tokenizer = tokenizer
        self._template = template
        self._special_texts = dict(special_texts or {})

    @classmethod
    def from_dir(cls, directory: Path | str) -> Tokenizer:
        """Read `tokenizer.json` and, where present, `chat_template.jinja` and `tokenizer_config.json`.

        Raises:
            CheckpointError: `tokenizer.json` is missing, or one of the files is damaged.
        """
        path = Path(directory)
        try:
            text = (path / TOKENIZER_FILE).read_text(encoding="utf-8")
            tokenizer = tokenizers.Tokenizer.from_str(text)
        except OSError as error:
            raise CheckpointError(TOKENIZER_FILE, str(path), f"a folder with this file ({error.strerror})") from error
        except Exception as error:
            raise CheckpointError(TOKENIZER_FILE, str(path), f"a valid tokenizer ({_first_line(error)})") from error
        tokenizer.no_padding()
        tokenizer.no_truncation()
        has_config = (path / TOKENIZER_CONFIG_FILE).exists()
        config = read_json_object(path / TOKENIZER_CONFIG_FILE, TOKENIZER_CONFIG_FILE) if has_config else {}
        return cls(tokenizer, _read_template(path, config), _special_texts(config))

    @property
    def vocab_size(self) -> int:
        """One more than the highest id, added tokens included."""
        return 1 + max(self._tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)

    @property
    def think_token_id(self) -> int | None:
        """Id of `<think>`, None when the vocabulary has no such token."""
        return self.token_id(THINK)

    @property
    def end_think_token_id(self) -> int | None:
        """Id of `</think>`, None when the vocabulary has no such token."""
        return self.token_id(END_THINK)

    @property
    def has_chat_template(self) -> bool:
        return self._template is not None

    def token_id(self, token: str) -> int | None:
        """Id of one token as written in the vocabulary, None when there is no such token."""
        token_id: int | None = self._tokenizer.token_to_id(token)
        return token_id

    def token_text(self, token_id: int) -> str | None:
        """One token as written in the vocabulary, None when there is no such id."""
        text: str | None = self._tokenizer.id_to_token(token_id)
        return text

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`. Special tokens written in the text become their ids; none is added.

        Raises:
            InvalidInputError: `text` is not a string or holds half of a surrogate pair, which no encoding of it can carry.
        """
        if not isinstance(text, str):
            raise InvalidInputError("text", type(text).__name__, "a string")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InvalidInputError("text", text[error.start : error.end], "valid Unicode without lone surrogates") from error
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def decode(self, token_ids: Iterable[int], skip_special_tokens: bool = True) -> str:
        """Text of `token_ids`; bytes that form no character become U+FFFD.

        Raises:
            InvalidInputError: an id is negative or does not fit 32 bits.
        """
        return str(self._tokenizer.decode(_checked_ids(token_ids), skip_special_tokens=skip_special_tokens))

    def apply_chat_template(
        self, messages: Sequence[Mapping[str, Any]], enable_thinking: bool = False, add_generation_prompt: bool = True
    ) -> str:
        """Render a chat to the text the model was trained on.

        Args:
            messages: each with `role` and `content`, oldest first.
            enable_thinking: end the generation prompt inside an open think section instead of an empty one.
            add_generation_prompt: end with the start of the assistant's turn.

        Raises:
            CheckpointError: the checkpoint has no chat template, or it cannot be rendered.
            InvalidInputError: a message is malformed, or the template refuses the chat.
        """
        if self._template is None:
            raise CheckpointError(
                "chat template", "missing", f"{CHAT_TEMPLATE_FILE} or chat_template in {TOKENIZER_CONFIG_FILE}"
            )
        _check_messages(messages)
        try:
            return self._template.render(
                messages=[dict(message) for message in messages],
                enable_thinking=enable_thinking,
                add_generation_prompt=add_generation_prompt,
                **self._special_texts,
            )
        except (TemplateError, TypeError, ValueError, ArithmeticError, LookupError, AttributeError) as error:
            if isinstance(error, InvalidInputError):
                raise
            raise CheckpointError("chat template", _first_line(error), "a template that renders these messages") from error


class IncrementalDecoder:
    """Text of a growing list of tokens, in pieces that never split a character.

    The pieces of `push` and the last one of `flush` together equal `Tokenizer.decode` of all tokens. A piece is held back
    while it ends in U+FFFD, because the next token may complete the character.
    """

    __slots__ = ("_context", "_pending", "_skip_special_tokens", "_tokenizer")

    def __init__(self, tokenizer: Tokenizer, skip_special_tokens: bool = True) -> None:
        self._tokenizer = tokenizer
        self._skip_special_tokens = skip_special_tokens
        # Tokens already emitted that the text of the next ones may depend on, then those held back.
        self._context: list[int] = []
        self._pending: list[int] = []

    def push(self, token_ids: Iterable[int]) -> str:
        """Append tokens and return the text that is now certain, often empty."""
        self._pending.extend(token_ids)
        text = self._pending_text()
        if not text or text.endswith(_REPLACEMENT):
            return ""
        self._context, self._pending = self._pending, []
        return text

    def flush(self) -> str:
        """Text of what is still held back, with U+FFFD for a character that was never completed."""
        text = self._pending_text()
        self._context, self._pending = self._pending, []
        return text

    def _pending_text(self) -> str:
        before = self._tokenizer.decode(self._context, self._skip_special_tokens)
        return self._tokenizer.decode(self._context + self._pending, self._skip_special_tokens)[len(before) :]


def _read_template(directory: Path, config: Mapping[str, Any]) -> Template | None:
    """The chat template from its own file or from the tokenizer configuration, where it may be one of a named list."""
    path = directory / CHAT_TEMPLATE_FILE
    source: object = config.get("chat_template")
    if path.exists():
        try:
            source = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise CheckpointError(CHAT_TEMPLATE_FILE, str(path), f"a readable text file ({error})") from error
    if isinstance(source, list):
        named = {entry.get("name"): entry.get("template") for entry in source if isinstance(entry, dict)}
        source = named.get("default")
    if source is None:
        return None
    if not isinstance(source, str):
        raise CheckpointError("chat_template", type(source).__name__, "a template text")
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"], autoescape=False
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _refuse_chat
    try:
        return environment.from_string(source)
    except TemplateError as error:
        raise CheckpointError("chat_template", _first_line(error), "a valid Jinja template") from error


def _to_json(value: object, indent: int | None = None) -> str:
    """Unlike Jinja's own filter, escape nothing for HTML."""
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _refuse_chat(message: object) -> None:
    raise InvalidInputError("messages", str(message), "a chat the template accepts")


def _special_texts(config: Mapping[str, Any]) -> dict[str, str]:
    """`bos_token` and the like; each is a text or a dictionary with `content`."""
    texts: dict[str, str] = {}
    for name in ("bos_token", "eos_token", "unk_token", "pad_token"):
        value = config.get(name)
        text = value.get("content") if isinstance(value, dict) else value
        if isinstance(text, str):
            texts[name] = text
    return texts


def _check_messages(messages: Sequence[object]) -> None:
    if isinstance(messages, (str, Mapping)) or not messages:
        raise InvalidInputError("messages", messages, "a list of at least one message")
    for index, message in enumerate(messages):
        for name in ("role", "content"):
            if not isinstance(message, Mapping) or not isinstance(message.get(name), str):
                raise InvalidInputError(f"messages[{index}].{name}", message, "a text")


def _checked_ids(token_ids: Iterable[int]) -> list[int]:
    ids = []
    for token_id in token_ids:
        value = operator.index(token_id)
        if not 0 <= value <= _MAX_TOKEN_ID:
            raise InvalidInputError("token_ids", value, f"0 to {_MAX_TOKEN_ID}")
        ids.append(value)
    return ids


def _first_line(error: Exception) -> str:
    return str(error).split("\n", 1)[0] or type(error).__name__

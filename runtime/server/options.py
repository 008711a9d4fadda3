"""Limits and wishes of a server. What the engine may do is in `EngineOptions`."""

from __future__ import annotations

from dataclasses import dataclass

from nemodiff_trt.errors import InvalidInputError


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerOptions:
    """How requests are taken over HTTP.

    Attributes:
        model_name: what clients call the model.
        api_keys: one of them has to come with every request to the API; empty for none.
        allowed_hosts: what requests may call this machine; empty for anything.
        max_body_bytes: longest request body.
        max_answers: answers one request may ask for, prompts times `n`.
        max_tokens: limit of every answer in tokens, and the default of chats; None for what the context holds.
        timeout_s: after so many seconds an answer ends with what it has; None for never.
        read_timeout_s: for a client to send its body.
        write_timeout_s: for a client to take a piece of its answer.
        log_prompts: write prompts and answers to the log.

    Raises:
        InvalidInputError: a field is out of range.
    """

    model_name: str
    api_keys: tuple[str, ...] = ()
    allowed_hosts: tuple[str, ...] = ()
    max_body_bytes: int = 4 << 20
    max_answers: int = 32
    max_tokens: int | None = None
    timeout_s: float | None = None
    read_timeout_s: float = 30.0
    write_timeout_s: float = 60.0
    log_prompts: bool = False

    def __post_init__(self) -> None:
        if not self.model_name:
            raise InvalidInputError("model_name", self.model_name, "a name")
        if not all(self.api_keys):
            # The keys themselves are nobody's business.
            raise InvalidInputError("api_key", "", "a key of at least one character")
        for name in ("max_body_bytes", "max_answers", "max_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InvalidInputError(name, value, "an integer of at least 1")
        for name in ("timeout_s", "read_timeout_s", "write_timeout_s"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise InvalidInputError(name, value, "a positive number of seconds")

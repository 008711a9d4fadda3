"""From the body of a request to what the engine is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from nemodiff_trt.errors import InvalidInputError
from nemodiff_trt.runtime.options import GenerationOptions
from nemodiff_trt.runtime.prompts import Prompt
from nemodiff_trt.runtime.server.errors import ApiError, invalid
from nemodiff_trt.runtime.server.options import ServerOptions
from nemodiff_trt.runtime.server.request_fields import read_options, request_model

# What the OpenAI API gives a completion that names no limit.
DEFAULT_COMPLETION_TOKENS = 16
# Clients send an answer back as they got it. None of these changes what the model is shown.
_IGNORED_IN_MESSAGES = frozenset({"name", "reasoning_content", "annotations"})
# The newer name of a role that the templates know by its older one.
_ROLES = {"developer": "system"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What one request asks of the engine.

    Attributes:
        prompts: each is answered `n` times.
        options: how.
        names: what the body calls options, for errors.
        n: answers to each prompt.
        stream: pieces as they come, instead of everything at the end.
        include_usage: a stream ends with the usage.
        trace: pieces tell what every engine run did.
        echo: answers begin with their prompt.
        return_token_ids: answers and their pieces tell the ids of their tokens.
    """

    prompts: tuple[Prompt, ...]
    options: GenerationOptions
    names: Mapping[str, str] = field(default_factory=dict)
    n: int = 1
    stream: bool = False
    include_usage: bool = False
    trace: bool = False
    echo: bool = False
    return_token_ids: bool = False


class TextPart(BaseModel):
    """A piece of a message."""

    model_config = ConfigDict(extra="forbid", strict=True)

    type: Literal["text"]
    text: str


class ChatMessage(BaseModel):
    """One message of a chat."""

    model_config = ConfigDict(extra="allow", strict=True)

    role: str
    content: str | list[TextPart]

    @model_validator(mode="after")
    def _no_more_than_text(self) -> ChatMessage:
        for name, value in (self.model_extra or {}).items():
            if value and name not in _IGNORED_IN_MESSAGES:
                raise ValueError(f"{name} is not supported: role and content only")
        return self

    def to_prompt(self) -> dict[str, str]:
        """As the chat template takes it."""
        content = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return {"role": _ROLES.get(self.role, self.role), "content": content}


class StreamOptions(BaseModel):
    """Wishes for a stream."""

    model_config = ConfigDict(extra="forbid", strict=True)

    include_usage: bool | None = None
    include_obfuscation: bool | None = Field(None, description="Has no effect.")


class ResponseFormat(BaseModel):
    """Only plain text is supported."""

    model_config = ConfigDict(extra="forbid", strict=True)

    type: Literal["text"]


class TemplateArguments(BaseModel):
    """What other servers let clients hand to the chat template."""

    model_config = ConfigDict(extra="forbid", strict=True)

    enable_thinking: bool | None = None


_COMMON: dict[str, Any] = {
    "model": (str | None, Field(None, description="Name of the model, as GET /v1/models has it.")),
    "n": (int | None, Field(None, ge=1, description="Answers to each prompt.")),
    "stream": (bool | None, Field(None, description="Send the answer as it is written.")),
    "stream_options": (StreamOptions | None, None),
    "return_token_ids": (bool | None, Field(None, description="Tell the ids of tokens.")),
    "trace": (bool | None, Field(None, description="With stream: tell what every engine run did.")),
}
ChatBody = request_model(
    "ChatBody",
    _COMMON
    | {
        "messages": (Annotated[list[ChatMessage], Field(min_length=1)], ...),
        "logprobs": (bool | None, Field(None, description="Report log-probabilities of tokens.")),
        "top_logprobs": (int | None, Field(None, description="And of so many alternatives.")),
        "chat_template_kwargs": (
            TemplateArguments | None,
            Field(None, description="enable_thinking, as other servers take it."),
        ),
        "response_format": (ResponseFormat | None, None),
        "modalities": (list[Literal["text"]] | None, None),
        "tools": (Annotated[list[Any], Field(max_length=0)] | None, Field(None, description="Not supported: no tools only.")),
        "tool_choice": (Literal["none", "auto"] | None, None),
    },
)
CompletionBody = request_model(
    "CompletionBody",
    _COMMON
    | {
        "prompt": (str | list[str] | list[int] | list[list[int]], ...),
        "logprobs": (int | None, Field(None, description="Report log-probabilities of tokens and of so many alternatives.")),
        "echo": (bool | None, Field(None, description="Begin the text with the prompt.")),
        "suffix": (Literal[""] | None, Field(None, description="Not supported.")),
        "best_of": (Literal[1] | None, Field(None, description="Not supported.")),
    },
)


class ReadBody(Protocol):
    """`read_chat` or `read_completion`."""

    def __call__(self, body: bytes, defaults: GenerationOptions, server: ServerOptions) -> Job: ...


def read_chat(body: bytes, defaults: GenerationOptions, server: ServerOptions) -> Job:
    """What a body of POST /v1/chat/completions asks for.

    Raises:
        ApiError: the body is malformed or asks for what there is not.
    """
    given: Any = _parse(ChatBody, body, server)
    logprobs = (given.top_logprobs or 0) if given.logprobs else None
    if given.top_logprobs is not None and not given.logprobs:
        raise invalid("top_logprobs", given.top_logprobs, "nothing without logprobs")
    more: dict[str, tuple[str, Any]] = {"logprobs": ("top_logprobs" if given.top_logprobs else "logprobs", logprobs)}
    template = given.chat_template_kwargs
    if given.enable_thinking is None and template is not None and template.enable_thinking is not None:
        more["enable_thinking"] = ("chat_template_kwargs", template.enable_thinking)
    options, names = read_options(given, defaults, more)
    names["prompt"] = "messages"
    return _job(given, ([message.to_prompt() for message in given.messages],), options, names, server)


def read_completion(body: bytes, defaults: GenerationOptions, server: ServerOptions) -> Job:
    """What a body of POST /v1/completions asks for; errors as for `read_chat`."""
    given: Any = _parse(CompletionBody, body, server)
    limit = min(DEFAULT_COMPLETION_TOKENS, defaults.max_new_tokens)
    options, names = read_options(given, defaults.changed(max_new_tokens=limit), {"logprobs": ("logprobs", given.logprobs)})
    if given.echo and given.logprobs is not None:
        raise invalid("echo", True, "false with logprobs: those of the prompt are not computed")
    prompt = given.prompt
    is_several = isinstance(prompt, list) and prompt and not isinstance(prompt[0], int)
    prompts = tuple(prompt) if is_several else (prompt,)
    if any(isinstance(one, list) and not one for one in prompts):
        raise invalid("prompt", prompt, "a text or token ids, no empty list")
    return _job(given, prompts, options, names, server)


def _parse(model: type[BaseModel], body: bytes, server: ServerOptions) -> BaseModel:
    try:
        given = model.model_validate_json(body)
    except ValidationError as error:
        raise _to_api_error(error) from error
    name = getattr(given, "model", None)
    if name is not None and name != server.model_name:
        message = str(InvalidInputError("model", name, server.model_name))
        raise ApiError(404, message, param="model", code="model_not_found")
    return given


def _to_api_error(error: ValidationError) -> ApiError:
    """The thing that is wrong: of a union, what is wrong in the branch that fits best."""
    details = max(error.errors(include_url=False, include_context=False), key=lambda one: len(one["loc"]))
    if details["type"] == "json_invalid":
        return ApiError(400, f"the body is not JSON: {details['msg']}", code="invalid_json")
    # The location also names the branch of a union that did not match.
    place = [part for part in details["loc"] if isinstance(part, int) or (part.isidentifier() and part != "str")]
    param = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place).removeprefix(".")
    if details["type"] == "extra_forbidden":
        return ApiError(400, f"{param}: there is no such field", param=param, code="unknown_field")
    return ApiError(400, f"{param or 'body'}: {details['msg']}", param=param or None, code="invalid_value")


def _job(
    given: Any, prompts: tuple[Prompt, ...], options: GenerationOptions, names: Mapping[str, str], server: ServerOptions
) -> Job:
    n = given.n or 1
    if n * len(prompts) > server.max_answers:
        allowed = f"at most {server.max_answers} answers a request"
        raise invalid("n", n, allowed if len(prompts) == 1 else f"{allowed}, prompts times n")
    if server.max_tokens is not None and options.max_new_tokens > server.max_tokens:
        raise invalid(names["max_new_tokens"], options.max_new_tokens, f"1 to {server.max_tokens}")
    if given.stream_options is not None and not given.stream:
        raise invalid("stream_options", "given", "nothing without stream")
    if given.trace and not given.stream:
        raise invalid("trace", True, "false without stream")
    return Job(
        prompts=prompts,
        options=options,
        names=names,
        n=n,
        stream=bool(given.stream),
        include_usage=bool(given.stream_options and given.stream_options.include_usage),
        trace=bool(given.trace),
        return_token_ids=bool(given.return_token_ids),
        echo=bool(getattr(given, "echo", None)),
    )

"""The one table of fields of a request that say how to answer: their names, types and the options they become."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, create_model

from nemodiff_trt.errors import InvalidInputError
from nemodiff_trt.runtime.options import GenerationOptions
from nemodiff_trt.runtime.sampling import Acceptance
from nemodiff_trt.runtime.sampling.options import bias_by_id
from nemodiff_trt.runtime.server.errors import invalid
from nemodiff_trt.vocabulary import Mode


def _as_given(value: Any) -> Any:
    return value


def _stop_texts(value: str | list[str]) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(value)


@dataclass(frozen=True, slots=True)
class OptionField:
    """A field of the body and what it becomes: `option` is a field of `GenerationOptions` or of its sampling options."""

    name: str
    option: str
    kind: Any
    description: str
    read: Callable[[Any], Any] = _as_given


_MODES, _RULES = ", ".join(Mode), ", ".join(Acceptance)
MAX_STOPS = 16

OPTION_FIELDS = (
    # Of the OpenAI API.
    OptionField("max_tokens", "max_new_tokens", int, "Limit of an answer in tokens."),
    OptionField("max_completion_tokens", "max_new_tokens", int, "The same under its newer name."),
    OptionField(
        "stop", "stop", str | Annotated[list[str], Field(max_length=MAX_STOPS)], "Texts that end an answer.", _stop_texts
    ),
    OptionField("temperature", "temperature", float, "0 is greedy, the default here."),
    OptionField("top_p", "top_p", float, "Draw from the fewest tokens whose probabilities reach it in sum."),
    OptionField("presence_penalty", "presence_penalty", float, "Taken off tokens that the answer holds."),
    OptionField("frequency_penalty", "frequency_penalty", float, "Taken off once for each time the answer holds a token."),
    OptionField("logit_bias", "logit_bias", dict[str, float], "Added to the logits of token ids.", bias_by_id),
    OptionField("seed", "seed", int, "Makes sampled answers repeatable."),
    # Beyond it.
    OptionField("mode", "mode", str, f"How the model writes: {_MODES}."),
    OptionField("block_length", "block_length", int, "Tokens of a block."),
    OptionField("threshold", "threshold", float, "Confidence that fixes a masked token."),
    OptionField("steps", "steps", int, "diffusion: passes a block, instead of a threshold."),
    OptionField("learned_sampler", "learned_sampler", bool, "diffusion: fix tokens by the scores of the server's sampler."),
    OptionField("draft_groups", "draft_groups", int, "quadratic: lengths of acceptance that are drafted for."),
    OptionField("num_leaves", "num_leaves", int, "self_speculation: second choices verified beside a draft."),
    OptionField("lookup_ngram", "lookup_ngram", int, "self_speculation: draft what followed the last so many tokens before."),
    OptionField("top_k", "top_k", int, "Draw from so many most probable tokens; 0 from all."),
    OptionField("min_p", "min_p", float, "Draw from tokens at least so many times as probable as the best."),
    OptionField("repetition_penalty", "repetition_penalty", float, "Divides logits of tokens seen in prompt and answer."),
    OptionField("acceptance", "acceptance", str, f"Of sampled drafts: {_RULES}."),
    OptionField("ignore_eos", "ignore_eos", bool, "Go on after the end-of-sequence token."),
    OptionField("enable_thinking", "enable_thinking", bool, "Open a think section."),
    OptionField("max_thinking_tokens", "max_thinking_tokens", int, "Close it after so many tokens."),
)
# Fields of the OpenAI API that change no answer: taken, and nothing done with them.
IGNORED_FIELDS = (
    "user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention",
    "parallel_tool_calls", "verbosity",
)  # fmt: skip

_CONFIG = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


def request_model(name: str, own: Mapping[str, Any]) -> type[BaseModel]:
    """A model of a body: fields of its `own`, those of the table, and the ignored ones. None is as good as absent."""
    options = {field.name: (field.kind | None, Field(None, description=field.description)) for field in OPTION_FIELDS}
    ignored = {field: (Any, Field(None, description="Has no effect.")) for field in IGNORED_FIELDS}
    fields: dict[str, Any] = {**own, **options, **ignored}
    return create_model(name, __config__=_CONFIG, **fields)


def read_options(
    body: BaseModel, defaults: GenerationOptions, more: Mapping[str, tuple[str, Any]]
) -> tuple[GenerationOptions, dict[str, str]]:
    """The options a body asks for, and the names it has for those that it gives.

    Args:
        body: checked against its model.
        defaults: of what it leaves out.
        more: options that are not in the table: the name the body has for them, and the value.

    Raises:
        ApiError: an option cannot be used.
    """
    given = {option: value for option, (_, value) in more.items()}
    names = {option: name for option, (name, _) in more.items()}
    for field in OPTION_FIELDS:
        value = getattr(body, field.name, None)
        if value is None:
            continue
        try:
            value = field.read(value)
        except InvalidInputError as error:
            raise invalid(field.name, error.value, error.allowed) from error
        if given.setdefault(field.option, value) != value:
            raise invalid(field.name, value, f"the same as {names[field.option]}, or only one of them")
        names[field.option] = field.name
    try:
        return defaults.changed(**given), names
    except InvalidInputError as error:
        raise invalid(names.get(error.field, error.field), error.value, error.allowed) from error

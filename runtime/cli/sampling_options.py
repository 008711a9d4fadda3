"""Options of commands that sample. Their defaults, and what is allowed, are those of `SamplingOptions`."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nemodiff_trt.errors import InvalidInputError

if TYPE_CHECKING:
    from nemodiff_trt.runtime.sampling import SamplingOptions


def _option(name: str, metavar: str, help_text: str) -> Any:
    return typer.Option(name, metavar=metavar, help=help_text, rich_help_panel="Sampling")


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingArguments:
    """The fields of `SamplingOptions` as options; None for its default."""

    temperature: Annotated[float | None, _option("--temperature", "T", "0 is greedy, the default.")] = None
    top_k: Annotated[int | None, _option("--top-k", "N", "Draw from the N most probable tokens; 0 from all.")] = None
    top_p: Annotated[float | None, _option("--top-p", "P", "Draw from the fewest tokens whose probabilities add up to P.")] = (
        None
    )
    min_p: Annotated[float | None, _option("--min-p", "P", "Draw from tokens at least P times as probable as the best.")] = None
    repetition_penalty: Annotated[
        float | None, _option("--repetition-penalty", "X", "Divides logits of tokens seen in prompt and answer; 1 for none.")
    ] = None
    presence_penalty: Annotated[
        float | None, _option("--presence-penalty", "X", "-2 to 2, taken off tokens that the answer holds.")
    ] = None
    frequency_penalty: Annotated[
        float | None, _option("--frequency-penalty", "X", "-2 to 2, taken off once for each time the answer holds a token.")
    ] = None
    logit_bias: Annotated[list[str] | None, _option("--logit-bias", "ID=X", "Added to the logit of token ID; repeatable.")] = (
        None
    )
    seed: Annotated[int | None, _option("--seed", "N", "Makes answers repeatable.")] = None
    acceptance: Annotated[
        str | None, _option("--acceptance", "RULE", "self_speculation: coupled (the tokens of ar) or rejection.")
    ] = None


def read_sampling(arguments: SamplingArguments, logprobs: int | None = None) -> SamplingOptions:
    """The options given, those of commands that report `logprobs` with their number.

    Raises:
        InvalidInputError: one of them is not usable.
    """
    from nemodiff_trt.runtime.sampling import SamplingOptions

    given = {field.name: getattr(arguments, field.name) for field in fields(SamplingArguments)}
    chosen: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if arguments.logit_bias is not None:
        chosen["logit_bias"] = tuple(_read_bias(text) for text in arguments.logit_bias)
    return SamplingOptions(**chosen, logprobs=logprobs)


def _read_bias(text: str) -> tuple[int, float]:
    token, _, value = text.partition("=")
    try:
        return int(token), float(value)
    except ValueError as error:
        raise InvalidInputError("logit_bias", text, "a token id and a number, such as 42=-1.5") from error

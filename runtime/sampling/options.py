"""How the tokens of a request are chosen."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from enum import StrEnum

from nemodiff_trt.errors import InvalidInputError

MAX_LOGPROBS = 20
# Beyond any difference of logits that matters, and what clients of chat APIs know.
MAX_LOGIT_BIAS = 100.0
MAX_COUNT_PENALTY = 2.0
# Single precision holds logits divided by it.
MIN_TEMPERATURE = 1e-6
_TEMPERATURES = f"0 for greedy, or a number of at least {MIN_TEMPERATURE:g}"
_SEED_RANGE = 2**64


class Acceptance(StrEnum):
    """Which drafted tokens of a sampled self-speculation are kept.

    `coupled`: those that equal what `ar` samples with the same seed. `rejection`: with probability min(1, p/q), the first
    refused one drawn again from (p-q)+; the tokens then differ from those of `ar` and have the same distribution.
    """

    COUPLED = "coupled"
    REJECTION = "rejection"


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingOptions:
    """How tokens are chosen, in the order in which it is applied: penalties, bias, temperature, top-k, top-p, min-p, draw.

    Attributes:
        repetition_penalty: above 0, 1 for none. Logits of tokens of prompt and answer are divided by it where positive and
            multiplied where negative.
        frequency_penalty: -2 to 2, subtracted from the logit of a token once for each time the answer holds it.
        presence_penalty: -2 to 2, subtracted once if the answer holds it.
        logit_bias: {token id: -100 to 100}, added to logits; kept as pairs in order of the ids.
        temperature: divides the logits. 0 is greedy: the largest logit, the lowest id among equals.
        top_k: only so many largest logits stay, the lowest ids among equals; 0 for all.
        top_p: of these, the fewest most probable tokens stay whose probabilities reach it in sum; 1 for all.
        min_p: of these, tokens stay that are at least so many times as probable as the most probable one; 0 for all.
        seed: 0 to 2**64-1, makes an answer repeatable; None draws one.
        logprobs: 0 to 20, report the log-probability of emitted tokens and of so many most probable alternatives; None: no.
        acceptance: of drafts in `self_speculation`, see `Acceptance`.

    Raises:
        InvalidInputError: a field is out of range.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] | tuple[tuple[int, float], ...] = ()
    seed: int | None = None
    logprobs: int | None = None
    acceptance: Acceptance = Acceptance.COUPLED

    def __post_init__(self) -> None:
        _check_number("temperature", self.temperature, _TEMPERATURES, low=0.0)
        if 0 < self.temperature < MIN_TEMPERATURE:
            raise InvalidInputError("temperature", self.temperature, _TEMPERATURES)
        _check_number("top_p", self.top_p, "a number above 0, up to 1", low=0.0, high=1.0, is_low_open=True)
        _check_number("min_p", self.min_p, "a number from 0 to 1", low=0.0, high=1.0)
        _check_number("repetition_penalty", self.repetition_penalty, "a number above 0", low=0.0, is_low_open=True)
        for name in ("presence_penalty", "frequency_penalty"):
            _check_number(name, getattr(self, name), "a number from -2 to 2", low=-MAX_COUNT_PENALTY, high=MAX_COUNT_PENALTY)
        _check_integer("top_k", self.top_k, "an integer of at least 0", 0)
        if self.seed is not None:
            _check_integer("seed", self.seed, f"an integer from 0 to {_SEED_RANGE - 1}", 0, _SEED_RANGE - 1)
        if self.logprobs is not None:
            _check_integer("logprobs", self.logprobs, f"an integer from 0 to {MAX_LOGPROBS}", 0, MAX_LOGPROBS)
        object.__setattr__(self, "logit_bias", _bias_pairs(self.logit_bias))
        try:
            object.__setattr__(self, "acceptance", Acceptance(self.acceptance))
        except ValueError as error:
            raise InvalidInputError("acceptance", self.acceptance, " or ".join(Acceptance)) from error

    @property
    def is_greedy(self) -> bool:
        return self.temperature == 0

    @property
    def has_penalties(self) -> bool:
        """Whether a choice depends on the tokens before it."""
        return self.repetition_penalty != 1 or self.presence_penalty != 0 or self.frequency_penalty != 0

    @property
    def needs_logits(self) -> bool:
        """Whether the engine's own decisions, greedy ones, are not enough."""
        return self._reason_for_logits() is not None

    def check_for(self, vocab_size: int, mask_token_id: int, has_logits: bool) -> None:
        """Compare with what an engine was built for.

        Raises:
            InvalidInputError: logits are needed that the engines do not return, or the bias is of an id that is never chosen.
        """
        reason = self._reason_for_logits()
        if reason is not None and not has_logits:
            usual = {field.name: field.default for field in fields(self)}[reason]
            raise InvalidInputError(reason, getattr(self, reason), f"{usual!r}: build the engines with --sampling for others")
        for token, _ in self.bias_pairs:
            if token >= vocab_size or token == mask_token_id:
                allowed = f"token ids below {vocab_size}, not the mask id {mask_token_id}"
                raise InvalidInputError("logit_bias", token, allowed)

    @property
    def bias_pairs(self) -> tuple[tuple[int, float], ...]:
        """`logit_bias` in the form in which it is kept."""
        return self.logit_bias if isinstance(self.logit_bias, tuple) else tuple(self.logit_bias.items())

    def _reason_for_logits(self) -> str | None:
        """The first option that takes logits."""
        if not self.is_greedy:
            return "temperature"
        for name, usual in (("repetition_penalty", 1), ("presence_penalty", 0), ("frequency_penalty", 0), ("logit_bias", ())):
            if getattr(self, name) != usual:
                return name
        return "logprobs" if self.logprobs is not None else None


def bias_by_id(value: Mapping[str, float], field: str = "logit_bias") -> dict[int, float]:
    """A bias as JSON has it, where keys are always texts.

    Raises:
        InvalidInputError: a key is no integer.
    """
    try:
        return {int(token): bias for token, bias in value.items()}
    except ValueError as error:
        raise InvalidInputError(field, list(value), "an object whose keys are token ids") from error


def _check_number(
    name: str, value: object, allowed: str, *, low: float, high: float = math.inf, is_low_open: bool = False
) -> None:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if not is_number or not low <= value <= high or (is_low_open and value == low):  # type: ignore[operator]
        raise InvalidInputError(name, value, allowed)


def _check_integer(name: str, value: object, allowed: str, least: int, most: float = math.inf) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise InvalidInputError(name, value, allowed)


def _bias_pairs(value: object) -> tuple[tuple[int, float], ...]:
    allowed = f"pairs of a token id and a number from -{MAX_LOGIT_BIAS:g} to {MAX_LOGIT_BIAS:g}, each id once"
    try:
        pairs = sorted(value.items()) if isinstance(value, Mapping) else sorted(value)  # type: ignore[call-overload]
        by_id = dict(pairs)
    except (TypeError, ValueError) as error:
        raise InvalidInputError("logit_bias", value, allowed) from error
    if len(by_id) != len(pairs):
        raise InvalidInputError("logit_bias", value, allowed)
    for token, bias in pairs:
        _check_integer("logit_bias", token, allowed, 0)
        _check_number("logit_bias", bias, allowed, low=-MAX_LOGIT_BIAS, high=MAX_LOGIT_BIAS)
    return tuple((token, float(bias)) for token, bias in pairs)

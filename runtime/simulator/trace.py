"""Requests of a trace: when they come, how long prompt and answer are, how they are decoded. No text."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from nemodiff_trt.errors import InvalidInputError
from nemodiff_trt.runtime.numbered_lines import read_numbered_lines
from nemodiff_trt.vocabulary import Mode

# Modes whose cycles follow from step times and acceptance alone.
SIMULATED_MODES = (Mode.AR, Mode.SELF_SPECULATION, Mode.AUTO)
DEFAULT_CATEGORY = "all"


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceRequest:
    """One request.

    Attributes:
        arrival_s: seconds after the start of the trace.
        prompt_tokens: length of the prompt.
        output_tokens: length of the answer.
        category: kind of text, which has an acceptance of its own.
        mode: one of `SIMULATED_MODES`; None for that of the deployment.

    Raises:
        InvalidInputError: a field is out of range.
    """

    arrival_s: float
    prompt_tokens: int
    output_tokens: int
    category: str = DEFAULT_CATEGORY
    mode: Mode | None = None

    def __post_init__(self) -> None:
        arrival = self.arrival_s
        if type(arrival) not in (int, float) or not 0 <= arrival < math.inf:
            raise InvalidInputError("arrival_s", arrival, "a finite number of seconds, 0 or more")
        for name in ("prompt_tokens", "output_tokens"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise InvalidInputError(name, value, "an integer of at least 1")
        if not isinstance(self.category, str):
            raise InvalidInputError("category", self.category, "a text")
        if self.mode is not None and self.mode not in SIMULATED_MODES:
            raise InvalidInputError("mode", str(self.mode), ", ".join(SIMULATED_MODES))


_FIELDS = tuple(field.name for field in fields(TraceRequest))


def read_trace(path: Path) -> list[TraceRequest]:
    """Requests of a JSONL file, in order of arrival.

    Raises:
        InvalidInputError: the file is missing or empty, or a line is not a request; names file and line.
    """
    requests = [_request(line, f"{path}:{number}") for number, line in read_numbered_lines(path, "trace")]
    if not requests:
        raise InvalidInputError("trace", str(path), "at least one request")
    return sorted(requests, key=lambda request: request.arrival_s)


def poisson_trace(
    rate_per_s: float, num_requests: int, prompt_tokens: int, output_tokens: int, seed: int = 0
) -> list[TraceRequest]:
    """Independent arrivals at a mean rate, requests of equal size.

    Raises:
        InvalidInputError: an argument is out of range.
    """
    if not 0 < rate_per_s < math.inf:
        raise InvalidInputError("rate", rate_per_s, "a positive number of requests per second")
    if num_requests < 1:
        raise InvalidInputError("num_requests", num_requests, "an integer of at least 1")
    arrivals = np.cumsum(np.random.default_rng(seed).exponential(1 / rate_per_s, num_requests))
    return [
        TraceRequest(arrival_s=float(arrival), prompt_tokens=prompt_tokens, output_tokens=output_tokens) for arrival in arrivals
    ]


def _request(line: str, place: str) -> TraceRequest:
    try:
        content: Any = json.loads(line)
    except ValueError as error:
        raise InvalidInputError(place, line[:80], f"a JSON object ({error})") from error
    required = {"arrival_s", "prompt_tokens", "output_tokens"}
    if not isinstance(content, dict) or not required <= content.keys() <= set(_FIELDS):
        allowed = f"an object with {', '.join(sorted(required))}, and optionally category, mode"
        raise InvalidInputError(place, line[:80], allowed)
    mode = content.get("mode")
    if mode is not None:
        if mode not in [str(allowed) for allowed in SIMULATED_MODES]:
            raise InvalidInputError(f"{place}: mode", mode, ", ".join(SIMULATED_MODES))
        content["mode"] = Mode(mode)
    try:
        return TraceRequest(**content)
    except InvalidInputError as error:
        raise InvalidInputError(place, line[:80], str(error)) from error

"""Limits of an engine loop."""

from __future__ import annotations

from dataclasses import dataclass

from nemodiff_trt.errors import InvalidInputError


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOptions:
    """How an engine loop admits and groups requests.

    Attributes:
        max_active: requests that decode at the same time; None for the `max_batch_size` of the bundle.
        max_waiting: requests that may wait for a slot; one more is refused as busy. None for no limit.
        prefill_budget: prompt tokens computed in one step of the loop, so that long prompts do not stall the others. At least
            one chunk is always computed.
        prefix_rows: finished requests whose keys and values are kept for prompts that begin like them. Each takes as much
            cache memory as an active request.
        min_prefix: shortest common beginning worth copying, in tokens.
        priority_s: seconds of waiting that one step of priority is worth. Finite, so nobody waits forever.

    Raises:
        InvalidInputError: a field is out of range.
    """

    max_active: int | None = None
    max_waiting: int | None = None
    prefill_budget: int = 2048
    prefix_rows: int = 4
    min_prefix: int = 8
    priority_s: float = 10.0

    def __post_init__(self) -> None:
        for name, least in (("max_active", 1), ("max_waiting", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise InvalidInputError(name, value, f"an integer of at least {least}, or nothing for no limit of its own")
        for name, least in (("prefill_budget", 1), ("prefix_rows", 0), ("min_prefix", 1)):
            if getattr(self, name) < least:
                raise InvalidInputError(name, getattr(self, name), f"an integer of at least {least}")
        if not 0 <= self.priority_s < float("inf"):
            raise InvalidInputError("priority_s", self.priority_s, "a finite number of seconds, 0 or more")

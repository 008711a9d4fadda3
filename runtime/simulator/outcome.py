"""What became of the requests of a trace, and the figures of a deployment made of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

_PERCENTILES = (50, 90, 99)
_SECONDS_PER_HOUR = 3600


@dataclass(frozen=True, slots=True)
class Outcome:
    """Seconds on the clock of the trace. `new_tokens` were emitted by the end."""

    arrival_s: float
    first_token_s: float
    end_s: float
    new_tokens: int

    @property
    def time_to_first_token_s(self) -> float:
        return self.first_token_s - self.arrival_s

    @property
    def total_s(self) -> float:
        return self.end_s - self.arrival_s

    @property
    def inter_token_s(self) -> float | None:
        """Mean time between two tokens; None where there is one token only."""
        return None if self.new_tokens < 2 else (self.end_s - self.first_token_s) / (self.new_tokens - 1)


def summarize(outcomes: Sequence[Outcome], num_replicas: int = 1, price_per_hour: float | None = None) -> dict[str, Any]:
    """Throughput, percentiles of latency in ms, and what a million emitted tokens cost.

    Args:
        outcomes: at least one.
        num_replicas: that were paid for.
        price_per_hour: of one replica.
    """
    tokens = sum(outcome.new_tokens for outcome in outcomes)
    duration_s = max(outcome.end_s for outcome in outcomes) - min(outcome.arrival_s for outcome in outcomes)
    gaps = [gap for outcome in outcomes if (gap := outcome.inter_token_s) is not None]
    summary: dict[str, Any] = {
        "requests": len(outcomes),
        "new_tokens": tokens,
        "duration_s": duration_s,
        "tokens_per_second": tokens / duration_s,
        "requests_per_second": len(outcomes) / duration_s,
        "time_to_first_token_ms": _percentiles([outcome.time_to_first_token_s for outcome in outcomes]),
        "inter_token_ms": _percentiles(gaps) if gaps else None,
        "total_ms": _percentiles([outcome.total_s for outcome in outcomes]),
    }
    if price_per_hour is not None:
        paid = num_replicas * price_per_hour * duration_s / _SECONDS_PER_HOUR
        summary["cost_per_million_tokens"] = paid / tokens * 1e6
    return summary


def _percentiles(seconds: Sequence[float]) -> dict[str, float]:
    found = np.percentile(np.asarray(seconds) * 1e3, _PERCENTILES)
    return {f"p{percent}": float(value) for percent, value in zip(_PERCENTILES, found, strict=True)}

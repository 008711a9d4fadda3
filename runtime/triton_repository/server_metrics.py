"""What the engine loop counts, as metrics of the server."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nemodiff_trt.runtime.answer import GenerationResult
from nemodiff_trt.runtime.triton_repository.response_stream import Backend

PREFIX = "nemodiff_"
# Totals of `TriModeEngine.stats`: metric -> (key of the total, what it is).
TOTALS: Mapping[str, tuple[str, str]] = {
    "tokens_total": ("tokens", "Tokens emitted to any request"),
    "engine_runs_total": ("engine_runs", "Engine runs, each for one or more requests"),
    "engine_seconds_total": ("engine_s", "Seconds spent in engine runs"),
    "loop_seconds_total": ("step_s", "Seconds spent in steps of the engine loop, engine runs included"),
    "prompt_tokens_total": ("prompt_tokens", "Prompt tokens of admitted requests"),
    "prefix_hit_tokens_total": ("reused_prompt_tokens", "Prompt tokens not computed, because another request began alike"),
}
# Totals by one property: metric -> (key, name of the label, what it is).
LABELLED_TOTALS: Mapping[str, tuple[str, str, str]] = {
    "requests_total": ("finished", "reason", "Finished requests by reason"),
    "request_runs_total": ("request_runs", "role", "Engine runs by role, one for every request that took part"),
    "auto_cycles_total": ("decisions", "block_length", "Cycles of requests in mode auto by block length; 1 is ar"),
    "verify_runs_total": ("accepted", "accepted", "Verify runs of speculating requests by number of accepted drafts"),
}
GAUGES: Mapping[str, tuple[str, str]] = {
    "waiting_requests": ("waiting", "Requests that wait for a slot"),
    "active_requests": ("active", "Requests that decode"),
    "free_slots": ("free_slots", "Slots nobody uses"),
}
# One observation a request: metric -> (upper bounds, what it is).
HISTOGRAMS: Mapping[str, tuple[tuple[float, ...], str]] = {
    "answer_tokens_per_forward": ((1, 1.5, 2, 3, 4, 6, 8, 12, 16, 24, 32), "Tokens per forward pass of an answer"),
    "answer_accepted_drafts": ((0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32), "Mean accepted drafts a cycle of an answer"),
    "queue_seconds": ((0.001, 0.005, 0.02, 0.1, 0.5, 2, 10, 60), "Seconds a request waited for a slot"),
    "first_token_seconds": ((0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 60), "Seconds to the first token"),
}
REFUSED = "refused_total"


class ServerMetrics:
    """Families and metrics of one model. Not safe for use from several threads at once, except `observe` and `refuse`.

    Counters grow by what has been added since the last update, so they go on where they were when a model is loaded again.
    """

    def __init__(self, backend: Backend, labels: Mapping[str, str], stats: Mapping[str, Any]) -> None:
        """Create the families; `stats` is where counting starts from."""
        self._labels = dict(labels)
        kinds = backend.MetricFamily
        self._families: dict[str, Any] = {}
        self._metrics: dict[tuple[str, str], Any] = {}
        self._last: dict[tuple[str, str], float] = {}
        self._label_names: dict[str, str] = {}
        for name, (_, text) in TOTALS.items():
            self._families[name] = kinds(name=PREFIX + name, description=text, kind=kinds.COUNTER)
        for name, (_, label, text) in LABELLED_TOTALS.items():
            self._families[name] = kinds(name=PREFIX + name, description=text, kind=kinds.COUNTER)
            self._label_names[name] = label
        for name, (_, text) in GAUGES.items():
            self._families[name] = kinds(name=PREFIX + name, description=text, kind=kinds.GAUGE)
        text = "Requests refused with an error, by reason"
        self._families[REFUSED] = kinds(name=PREFIX + REFUSED, description=text, kind=kinds.COUNTER)
        self._label_names[REFUSED] = "reason"
        # Servers before 24.10 have no histograms.
        if hasattr(kinds, "HISTOGRAM"):
            for name, (bounds, text) in HISTOGRAMS.items():
                family = kinds(name=PREFIX + name, description=text, kind=kinds.HISTOGRAM)
                self._families[name] = family
                self._metrics[name, ""] = family.Metric(labels=self._labels, buckets=[float(bound) for bound in bounds])
        self._last = dict(self._totals(stats))

    def update(self, stats: Mapping[str, Any]) -> None:
        """Bring counters and gauges up to `stats` of the engine."""
        for counter, total in self._totals(stats):
            added = total - self._last.get(counter, 0.0)
            if added > 0 or counter not in self._metrics:
                self._metric(*counter).increment(added)
                self._last[counter] = total
        for name, (key, _) in GAUGES.items():
            self._metric(name, "").set(float(stats[key]))

    def observe(self, result: GenerationResult) -> None:
        """Add an answer to the histograms."""
        stats = result.stats
        values = {
            "answer_tokens_per_forward": stats.tokens_per_forward,
            "answer_accepted_drafts": stats.mean_accepted_drafts,
            "queue_seconds": stats.queue_ms / 1e3,
            "first_token_seconds": (stats.queue_ms + stats.prefill_ms) / 1e3,
        }
        for name, value in values.items():
            if value is not None and (name, "") in self._metrics:
                self._metrics[name, ""].observe(float(value))

    def refuse(self, reason: str) -> None:
        """Count a request that got an error in place of an answer."""
        self._metric(REFUSED, reason).increment(1.0)

    def _totals(self, stats: Mapping[str, Any]) -> list[tuple[tuple[str, str], float]]:
        plain = [((name, ""), float(stats[key])) for name, (key, _) in TOTALS.items()]
        labelled = [
            ((name, value), float(count))
            for name, (key, _, _) in LABELLED_TOTALS.items()
            for value, count in stats[key].items()
        ]
        return plain + labelled

    def _metric(self, name: str, label: str) -> Any:
        if (name, label) not in self._metrics:
            more = {self._label_names[name]: label} if label else {}
            self._metrics[name, label] = self._families[name].Metric(labels=self._labels | more)
        return self._metrics[name, label]

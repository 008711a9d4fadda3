"""Metrics of a server and its engine in the text format of Prometheus, version 0.0.4."""

from __future__ import annotations

import bisect
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from nemodiff_trt.runtime.answer import GenerationResult

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
PREFIX = "nemodiff_"
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_TOKENS_PER_FORWARD = (1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0, 12.0, 16.0, 24.0, 32.0)

_ACCEPTED = (0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 24.0, 32.0)

# Name: (type, help, key in `TriModeEngine.stats`).
_ENGINE_METRICS = {
    "tokens_total": ("counter", "Tokens emitted to any request.", "tokens"),
    "prompt_tokens_total": ("counter", "Prompt tokens of admitted requests.", "prompt_tokens"),
    "prefix_hit_tokens_total": ("counter", "Prompt tokens not computed, another request began alike.", "reused_prompt_tokens"),
    "steps_total": ("counter", "Steps of the engine loop.", "steps"),
    "loop_seconds_total": ("counter", "Seconds these steps took, engine runs included.", "step_s"),
    "engine_runs_total": ("counter", "Engine runs, each for several requests.", "engine_runs"),
    "engine_seconds_total": ("counter", "Seconds inside engine runs.", "engine_s"),
    "waiting_requests": ("gauge", "Requests in the queue.", "waiting"),
    "active_requests": ("gauge", "Requests with a slot.", "active"),
    "free_slots": ("gauge", "Slots nobody has.", "free_slots"),
}
_ENGINE_COUNTS = {
    "request_runs_total": ("role", "Engine runs by role, counted for every request that took part.", "request_runs"),
    "requests_total": ("reason", "Finished requests by reason.", "finished"),
    "auto_cycles_total": ("block_length", "Cycles of requests in mode auto by block length; 1 is ar.", "decisions"),
}


class Histogram:
    """Counts of observations by upper bound."""

    __slots__ = ("_bounds", "_counts", "_sum")

    def __init__(self, bounds: Iterable[float]) -> None:
        """`bounds` rise; infinity is added."""
        self._bounds = (*bounds, math.inf)
        self._counts = [0] * len(self._bounds)
        self._sum = 0.0

    def add(self, value: float, count: int = 1) -> None:
        self._counts[bisect.bisect_left(self._bounds, value)] += count
        self._sum += value * count

    def lines(self, name: str, labels: str = "") -> list[str]:
        total, lines, before = 0, [], f"{labels}," if labels else ""
        for bound, count in zip(self._bounds, self._counts, strict=True):
            total += count
            lines.append(f'{name}_bucket{{{before}le="{_number(bound)}"}} {total}')
        shown = f"{{{labels}}}" if labels else ""
        return [*lines, f"{name}_sum{shown} {_number(self._sum)}", f"{name}_count{shown} {total}"]


class ServerMetrics:
    """What a server counts itself."""

    __slots__ = ("_answer_tokens", "_between", "_first", "_forward_passes", "_per_forward", "_requests", "num_open")

    def __init__(self) -> None:
        self.num_open = 0
        self._requests: Counter[tuple[str, int]] = Counter()
        self._answer_tokens: Counter[str] = Counter()
        self._forward_passes: Counter[str] = Counter()
        self._per_forward: dict[str, Histogram] = {}
        self._first = Histogram(_SECONDS)
        self._between = Histogram(_SECONDS)

    def add_request(self, path: str, status: int) -> None:
        """Count a request that was answered; there must be few different paths."""
        self._requests[path, status] += 1

    def add_piece(self, seconds: float, is_first: bool) -> None:
        """Count a piece of an answer that came so long after the request or the piece before it."""
        (self._first if is_first else self._between).add(seconds)

    def add_result(self, result: GenerationResult) -> None:
        mode, stats = str(result.mode), result.stats
        self._answer_tokens[mode] += stats.new_tokens
        self._forward_passes[mode] += stats.forward_passes
        if stats.tokens_per_forward is not None:
            self._per_forward.setdefault(mode, Histogram(_TOKENS_PER_FORWARD)).add(stats.tokens_per_forward)

    def render(self, engine: Mapping[str, Any] | None) -> str:
        """Everything as text. `engine` is `TriModeEngine.stats`, None of an engine that has stopped."""
        lines = [*_head("up", "gauge", "Whether the engine runs."), f"{PREFIX}up {int(engine is not None)}"]
        lines += _engine_lines(engine) if engine is not None else []
        lines += [
            *_head("http_requests_open", "gauge", "Requests being answered."),
            f"{PREFIX}http_requests_open {self.num_open}",
        ]
        lines += _head("http_requests_total", "counter", "Answered requests.")
        for (path, status), count in sorted(self._requests.items()):
            lines.append(f'{PREFIX}http_requests_total{{path="{path}",status="{status}"}} {count}')
        for name, help_text, counts in (
            ("answer_tokens_total", "Tokens of finished answers.", self._answer_tokens),
            ("forward_passes_total", "Engine runs after prefill that decoded them.", self._forward_passes),
        ):
            lines += [*_head(name, "counter", help_text), *_counts(name, "mode", counts)]
        lines += _head(
            "answer_tokens_per_forward", "histogram", "Of finished answers, the first token and its prefill left out."
        )
        for mode, histogram in sorted(self._per_forward.items()):
            lines += histogram.lines(f"{PREFIX}answer_tokens_per_forward", f'mode="{mode}"')
        for name, help_text, histogram in (
            ("first_token_seconds", "From request to first token.", self._first),
            ("between_pieces_seconds", "From one piece of an answer to the next.", self._between),
        ):
            lines += [*_head(name, "histogram", help_text), *histogram.lines(f"{PREFIX}{name}")]
        return "\n".join(lines) + "\n"


def _engine_lines(engine: Mapping[str, Any]) -> list[str]:
    lines: list[str] = []
    for name, (kind, help_text, key) in _ENGINE_METRICS.items():
        lines += [*_head(name, kind, help_text), f"{PREFIX}{name} {_number(engine[key])}"]
    for name, (label, help_text, key) in _ENGINE_COUNTS.items():
        lines += [*_head(name, "counter", help_text), *_counts(name, label, engine[key])]
    accepted = Histogram(_ACCEPTED)
    for value, count in engine["accepted"].items():
        accepted.add(int(value), count)
    help_text = "Drafted tokens that entered the answer, of every verify run of a speculating request."
    return [*lines, *_head("accepted_drafts", "histogram", help_text), *accepted.lines(f"{PREFIX}accepted_drafts")]


def _head(name: str, kind: str, help_text: str) -> list[str]:
    return [f"# HELP {PREFIX}{name} {help_text}", f"# TYPE {PREFIX}{name} {kind}"]


def _counts(name: str, label: str, counts: Mapping[str, int]) -> list[str]:
    return [f'{PREFIX}{name}{{{label}="{key}"}} {count}' for key, count in sorted(counts.items())]


def _number(value: float) -> str:
    return "+Inf" if value == math.inf else f"{value:.10g}"

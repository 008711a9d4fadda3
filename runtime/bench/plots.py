"""The plots of a report, each from the runs of a result file."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from nemodiff_trt.runtime.bench.result_file import Result
from nemodiff_trt.runtime.bench.themed_svg import INK, SERIES, new_figure, to_inline_svg

Run = dict[str, Any]


def accuracy_by_tokens_per_forward(result: Result) -> str | None:
    """Where the right answers are, and what they cost."""
    runs = [run for run in _first_level(result) if run["accuracy"] is not None and run["tokens_per_forward"]]
    if not runs:
        return None

    def draw(axes: Any) -> None:
        for place, (kind, members) in enumerate(_by_kind(runs).items()):
            xs, ys = ([run[name] for run in members] for name in ("tokens_per_forward", "accuracy"))
            axes.scatter(xs, [100 * y for y in ys], color=SERIES[place % 8], label=kind, s=46, zorder=3)
        axes.set_xlabel("tokens per forward")
        axes.set_ylabel("exact answers, %")

    return _drawn("accuracy", "Exact answers against tokens per forward, one point for each case", draw)


def acceptance_by_position(result: Result) -> str | None:
    """How far drafts are right."""
    runs = [run for run in _first_level(result) if run["acceptance"]]
    if not runs:
        return None

    def draw(axes: Any) -> None:
        for place, run in enumerate(runs):
            shares = [100 * share for share in run["acceptance"]["by_position"]]
            axes.plot(range(1, len(shares) + 1), shares, color=SERIES[place % 8], label=run["case"], linewidth=2)
        axes.set_ylim(0, 100)
        axes.set_xlabel("position of the draft")
        axes.set_ylabel("accepted, %")

    return _drawn("positions", "Share of drafts accepted at each position, one line for each drafting case", draw)


def acceptance_by_category(result: Result) -> str | None:
    """Tokens per forward of speculative cases, category by category."""
    runs = [run for run in _first_level(result) if run["acceptance"]]
    if not runs:
        return None
    names = list(runs[0]["categories"])

    def draw(axes: Any) -> None:
        height = 0.8 / len(runs)
        for place, run in enumerate(runs):
            values = [run["categories"].get(name, {}).get("tokens_per_forward") or 0 for name in names]
            offsets = [index + place * height for index in range(len(names))]
            axes.barh(offsets, values, height * 0.9, color=SERIES[place % 8], label=run["case"], zorder=3)
        axes.set_yticks([index + 0.4 - height / 2 for index in range(len(names))], names)
        axes.invert_yaxis()
        axes.set_xlabel("tokens per forward")

    return _drawn("categories", "Tokens per forward by category, one bar for each drafting case", draw)


def throughput_by_user_speed(result: Result) -> str | None:
    """What many users at a time cost each of them."""
    runs = [run for run in result["runs"] if run["user_tokens_per_second"] and run["workload"] == _workload(result)]
    if not runs:
        return None

    def draw(axes: Any) -> None:
        for place, name in enumerate(dict.fromkeys(run["case"] for run in runs)):
            members = [run for run in runs if run["case"] == name]
            xs, ys = ([run[key] for run in members] for key in ("user_tokens_per_second", "system_tokens_per_second"))
            axes.plot(xs, ys, "-o" if place < 8 else "--s", color=SERIES[place % 8], label=name, linewidth=1.5)
            for run, x, y in zip(members, xs, ys, strict=True):
                axes.annotate(str(run["concurrency"]), (x, y), (4, 4), textcoords="offset points", color=INK, fontsize=8)
        axes.set_xlabel("tokens/s of a user (numbers: requests at a time)")
        axes.set_ylabel("tokens/s of the system")

    return _drawn("throughput", "Throughput of the system against the speed of a user, one line for each case", draw)


def step_time_by_tokens(result: Result) -> str | None:
    """What a run of the engine costs."""
    steps = result["step_times"]
    if not steps:
        return None

    def draw(axes: Any) -> None:
        for place, role in enumerate(dict.fromkeys(step["role"] for step in steps)):
            points = [(step["batch"] * step["step"], step["ms"]) for step in steps if step["role"] == role]
            axes.scatter(*zip(*points, strict=True), color=SERIES[place % 8], label=role, s=18, alpha=0.8, zorder=3)
        axes.set_xscale("log", base=2)
        axes.set_xlabel("tokens of a run, all rows together")
        axes.set_ylabel("ms")

    return _drawn("steps", "Time of one engine run against its tokens, by role", draw)


PLOTS: tuple[tuple[str, Callable[[Result], str | None]], ...] = (
    ("Accuracy and tokens per forward", accuracy_by_tokens_per_forward),
    ("Acceptance by position", acceptance_by_position),
    ("Tokens per forward by category", acceptance_by_category),
    ("Throughput and speed of a user", throughput_by_user_speed),
    ("Time of a step", step_time_by_tokens),
)


def _drawn(name: str, description: str, draw: Callable[[Any], None]) -> str:
    import matplotlib as mpl

    figure, axes, style = new_figure(name)
    with mpl.rc_context(style):
        draw(axes)
        figure.legend(loc="outside right upper", fontsize=8)
    return to_inline_svg(figure, style, name, description)


def _workload(result: Result) -> str | None:
    return result["runs"][0]["workload"] if result["runs"] else None


def _first_level(result: Result) -> list[Run]:
    """Runs of the first workload at its lowest concurrency: what was accepted does not depend on it."""
    runs = [run for run in result["runs"] if run["workload"] == _workload(result)]
    lowest = min((run["concurrency"] for run in runs), default=0)
    return [run for run in runs if run["concurrency"] == lowest]


def _by_kind(runs: list[Run]) -> dict[str, list[Run]]:
    """Cases by their name without block length and threshold."""
    kinds: dict[str, list[Run]] = {}
    for run in runs:
        kinds.setdefault(run["case"].split(" ")[0], []).append(run)
    return kinds

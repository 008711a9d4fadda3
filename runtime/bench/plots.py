"""The plots of a report, each from the runs of a result file."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from nemodiff_trt.runtime.bench.case_styles import case_styles, cases_by_kind, label_within_kind
from nemodiff_trt.runtime.bench.result_file import Result
from nemodiff_trt.runtime.bench.themed_svg import GRID, INK, SERIES, figure_style, new_figure, to_inline_svg

Run = dict[str, Any]
_PANEL_COLUMNS = 3


def accuracy_by_tokens_per_forward(result: Result) -> str | None:
    """Where the right answers are, and what they cost."""
    runs = [run for run in _first_level(result) if run["accuracy"] is not None and run["tokens_per_forward"]]
    if not runs:
        return None
    styles = case_styles(result["runs"])

    def draw(axes: Any) -> None:
        for run in runs:
            style, point = styles[run["case"]], (run["tokens_per_forward"], 100 * run["accuracy"])
            axes.plot(*point, style.marker, color=style.color, label=run["case"], markersize=7, zorder=3)
        axes.set_xlabel("tokens per forward")
        axes.set_ylabel("exact answers, %")

    return _drawn("accuracy", "Exact answers against tokens per forward, one point for each case", draw)


def acceptance_by_position(result: Result) -> str | None:
    """How far drafts are right."""
    runs = _drafting(result)
    if not runs:
        return None
    styles = case_styles(result["runs"])

    def draw(axes: Any) -> None:
        for run in runs:
            style, shares = styles[run["case"]], [100 * share for share in run["acceptance"]["by_position"]]
            places = range(1, len(shares) + 1)
            axes.plot(places, shares, style.line, color=style.color, label=run["case"], linewidth=2)
        axes.set_ylim(0, 100)
        axes.set_xlabel("position of the draft")
        axes.set_ylabel("accepted, %")

    return _drawn("positions", "Share of drafts accepted at each position, one line for each drafting case", draw)


def drafts_of_a_cycle(result: Result) -> str | None:
    """How many drafts cycles accept: a whole block, none, or something between."""
    runs = _drafting(result)
    if not runs:
        return None
    styles = case_styles(result["runs"])

    def draw(axes: Any) -> None:
        for run in runs:
            style, histogram = styles[run["case"]], run["acceptance"]["histogram"]
            shares = [100 * count / run["acceptance"]["cycles"] for count in histogram]
            axes.plot(
                range(len(shares)), shares, style.line, marker=style.marker, color=style.color, label=run["case"], markersize=4
            )
        axes.set_ylim(0)
        axes.set_xlabel("drafts accepted in a cycle")
        axes.set_ylabel("cycles, %")

    return _drawn("histogram", "Share of cycles by the number of drafts accepted, one line for each drafting case", draw)


def tokens_per_forward_by_category(result: Result) -> str | None:
    """Speculative cases, category by category."""
    runs = _drafting(result)
    if not runs:
        return None
    styles, names = case_styles(result["runs"]), list(runs[0]["categories"])

    def draw(axes: Any) -> None:
        for run in runs:
            style = styles[run["case"]]
            found = [(run["categories"][name]["tokens_per_forward"], place) for place, name in enumerate(names)]
            points = [point for point in found if point[0] is not None]
            if points:
                axes.plot(
                    *zip(*points, strict=True), style.marker, color=style.color, label=run["case"], markersize=7, alpha=0.85
                )
        axes.set_yticks(range(len(names)), names)
        axes.invert_yaxis()
        axes.set_xlabel("tokens per forward")

    description = "Tokens per forward by category, one mark for each drafting case"
    return _drawn("categories", description, draw, height=max(3.0, 0.5 * len(names)))


def throughput_by_user_speed(result: Result) -> str | None:
    """What many users at a time cost each of them: a panel for each kind of case, the other kinds behind it in grey."""
    runs = [run for run in result["runs"] if run["user_tokens_per_second"] and run["workload"] == _workload(result)]
    if not runs:
        return None
    styles, kinds = case_styles(result["runs"]), cases_by_kind(runs)
    lines = {name: _speeds(runs, name) for names in kinds.values() for name in names}
    columns = min(_PANEL_COLUMNS, len(kinds))
    rows = math.ceil(len(kinds) / columns)

    def draw(panels: Any) -> None:
        flat = list(panels.flat)
        for axes in flat[len(kinds) :]:
            axes.set_visible(False)
        # Shared scales leave the numbers to the last row, which may not be full.
        for axes in flat[max(len(kinds) - columns, 0) : len(kinds)]:
            axes.tick_params(labelbottom=True)
        for axes, (kind, names) in zip(flat, kinds.items(), strict=False):
            for name in lines.keys() - set(names):
                axes.plot(*lines[name][:2], color=GRID, linewidth=1, marker=".", zorder=1)
            for name in names:
                xs, ys, levels = lines[name]
                style = styles[name]
                axes.plot(
                    xs,
                    ys,
                    style.line,
                    marker=style.marker,
                    color=style.color,
                    label=label_within_kind(name),
                    linewidth=1.8,
                    zorder=3,
                )
                for place in sorted({0, len(levels) - 1}):
                    point = (xs[place], ys[place])
                    axes.annotate(str(levels[place]), point, (5, 4), textcoords="offset points", color=INK, fontsize=8)
            axes.set_title(kind, fontsize=10, loc="left")
            if names != [kind]:
                axes.legend(fontsize=7)
        figure = flat[0].figure
        figure.supxlabel("tokens/s of a user (numbers: requests at a time)", fontsize=10)
        figure.supylabel("tokens/s of the system", fontsize=10)

    description = "Throughput of the system against the speed of a user, a panel for each kind of case"
    return _drawn("throughput", description, draw, height=2.8 * rows, panels=(rows, columns), has_legend=False)


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
    ("Drafts accepted in a cycle", drafts_of_a_cycle),
    ("Tokens per forward by category", tokens_per_forward_by_category),
    ("Throughput and speed of a user", throughput_by_user_speed),
    ("Time of a step", step_time_by_tokens),
)


def _drawn(
    name: str,
    description: str,
    draw: Callable[[Any], None],
    height: float = 4.0,
    panels: tuple[int, int] | None = None,
    has_legend: bool = True,
) -> str:
    """`draw` gets the axes; with `panels` (rows, columns) an array of them, which share their scales."""
    style = figure_style(name)
    figure = new_figure(style, height)
    import matplotlib as mpl

    with mpl.rc_context(style):
        if panels is None:
            draw(figure.add_subplot())
        else:
            draw(figure.subplots(*panels, sharex=True, sharey=True, squeeze=False))
        if has_legend:
            figure.legend(loc="outside right upper", fontsize=8)
    return to_inline_svg(figure, style, name, description)


def _speeds(runs: list[Run], name: str) -> tuple[list[float], list[float], list[int]]:
    """Of a user, of the system, and at how many requests at a time."""
    members = sorted((run for run in runs if run["case"] == name), key=lambda run: run["concurrency"])
    keys = ("user_tokens_per_second", "system_tokens_per_second", "concurrency")
    users, system, levels = ([run[key] for run in members] for key in keys)
    return users, system, levels


def _workload(result: Result) -> str | None:
    return result["runs"][0]["workload"] if result["runs"] else None


def _first_level(result: Result) -> list[Run]:
    """Runs of the first workload at its lowest concurrency: what was accepted does not depend on it."""
    runs = [run for run in result["runs"] if run["workload"] == _workload(result)]
    lowest = min((run["concurrency"] for run in runs), default=0)
    return [run for run in runs if run["concurrency"] == lowest]


def _drafting(result: Result) -> list[Run]:
    """Runs that speculate, of those of `_first_level`."""
    return [run for run in _first_level(result) if run["acceptance"]]

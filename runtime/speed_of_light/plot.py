"""Picture of a study: acceptance and tokens per forward by block length, and by category at the longest block."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nemodiff_trt.atomic_file import replaced_file
from nemodiff_trt.runtime.speed_of_light.study import ALL, EXACT_GREEDY, GREEDY, StudyRow


def plot_study(rows: Sequence[StudyRow], path: Path) -> None:
    """Write the picture to `path`, whose suffix says the form. Its own white ground keeps it legible on dark pages."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # It lies on compaction wherever greedy acceptance does.
    rows = [row for row in rows if row.way != EXACT_GREEDY]
    figure = Figure(figsize=(12, 3.8), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, 3)
    lengths = sorted({row.block_length for row in rows})
    for axis, field in zip(axes[:2], ("acceptance", "tokens_per_forward"), strict=True):
        _by_length(axis, [row for row in rows if row.category == ALL], field, lengths)
    axes[0].set_title("tokens per denoise step or cycle", fontsize=9)
    axes[1].axhline(1.0, color="0.5", linestyle=":", label="ar")
    axes[1].set_title("tokens per forward, cache refresh included", fontsize=9)
    axes[1].legend(fontsize=7)
    _by_category(axes[2], [row for row in rows if row.block_length == lengths[-1] and row.category != ALL])
    axes[2].set_title(f"tokens per forward by category, B={lengths[-1]}", fontsize=9)
    for axis in axes:
        axis.tick_params(labelsize=8)
    form = path.suffix.removeprefix(".")
    with replaced_file(path) as partial, rc_context({"svg.hashsalt": "nemodiff"}):
        figure.savefig(partial, format=form, metadata={"Date": None} if form == "svg" else None)


def _by_length(axis: Any, rows: Sequence[StudyRow], field: str, lengths: Sequence[int]) -> None:
    for way in dict.fromkeys(row.way for row in rows):
        values = [getattr(row, field) for row in rows if row.way == way]
        places = [lengths.index(row.block_length) for row in rows if row.way == way]
        # Greedy acceptance mostly lies on compaction: dashes on top let both be seen.
        style = {"linestyle": "--", "zorder": 3} if way == GREEDY else {"marker": "o", "markersize": 4}
        axis.plot(places, values, label=way, **style)
    axis.set_xticks(range(len(lengths)), [str(length) for length in lengths])
    axis.set_xlabel("block length", fontsize=8)
    axis.set_ylim(bottom=0)


def _by_category(axis: Any, rows: Sequence[StudyRow]) -> None:
    categories = list(dict.fromkeys(row.category for row in rows))
    ways = [way for way in dict.fromkeys(row.way for row in rows) if way not in ("serial", GREEDY)]
    height = 0.8 / len(ways)
    for place, way in enumerate(ways):
        chosen = [row for row in rows if row.way == way and row.tokens_per_forward is not None]
        positions = [categories.index(row.category) + place * height for row in chosen]
        # Colours of the lines: serial and greedy come before.
        axis.barh(positions, [row.tokens_per_forward for row in chosen], height, label=way, color=f"C{place + 2}")
    axis.set_yticks([index + 0.4 for index in range(len(categories))], categories)
    axis.invert_yaxis()

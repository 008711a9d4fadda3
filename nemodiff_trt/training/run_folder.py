"""Files of a training run: state to resume from, loss log, loss plot. Every write is atomic."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from nemodiff_trt.atomic_file import replaced_file

STATE_FILE = "state.pt"
LOG_FILE = "loss.jsonl"
PLOT_FILE = "loss.png"


def save_state(directory: Path, state: dict[str, Any]) -> None:
    """Replace the saved state; a kill in between leaves the old one."""
    directory.mkdir(parents=True, exist_ok=True)
    with replaced_file(directory / STATE_FILE) as partial:
        torch.save(state, partial)


def load_state(directory: Path) -> dict[str, Any] | None:
    """The saved state, or None when the run has none yet."""
    path = directory / STATE_FILE
    if not path.exists():
        return None
    state: dict[str, Any] = torch.load(path, weights_only=True)
    return state


def read_log(directory: Path) -> list[dict[str, float]]:
    """All log entries, oldest first."""
    path = directory / LOG_FILE
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def truncate_log(directory: Path, first_step_to_drop: int) -> None:
    """Drop entries a resumed run is going to write again."""
    kept = [entry for entry in read_log(directory) if entry["step"] < first_step_to_drop]
    with replaced_file(directory / LOG_FILE) as partial:
        partial.write_text("".join(json.dumps(entry) + "\n" for entry in kept), encoding="utf-8")


def append_log(directory: Path, entry: dict[str, float]) -> None:
    """Add one line to the log; a killed run loses at most that line."""
    with (directory / LOG_FILE).open("a", encoding="utf-8") as file:
        file.write(json.dumps(entry) + "\n")


def plot_log(directory: Path, series: tuple[str, ...], title: str) -> Path:
    """Draw the logged `series` over steps into `loss.png`."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    entries = read_log(directory)
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for name in series:
        axes.plot([entry["step"] for entry in entries], [entry[name] for entry in entries], label=name.replace("_", " "))
    axes.set(xlabel="step", ylabel="nats per token", yscale="log", title=title)
    axes.grid(alpha=0.3)
    axes.legend()
    path = directory / PLOT_FILE
    FigureCanvasAgg(figure)
    figure.savefig(path)
    return path

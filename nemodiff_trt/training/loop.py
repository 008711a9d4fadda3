"""The loop every training run shares: schedule, averaging, log, saved state, resume."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from nemodiff_trt.errors import InvalidInputError
from nemodiff_trt.training import run_folder
from nemodiff_trt.training.optimizers import Optimizers, learning_rate_factor, set_learning_rate

Progress = Callable[[int, dict[str, float]], None]


class Trainee(Protocol):
    """What a run trains.

    `train_step` draws its batch from the step number alone, so that a resumed run sees the same data, and returns losses to
    average. `weights` is what is being trained; `fingerprint` names the options a resumed run may not change.
    """

    optimizers: Optimizers
    fingerprint: str

    def train_step(self, step: int) -> dict[str, float]: ...

    def weights(self) -> dict[str, Any]: ...

    def load_weights(self, weights: dict[str, Any]) -> None: ...


@dataclass(frozen=True, slots=True)
class LoopOptions:
    """Length and schedule of a run, in steps."""

    num_steps: int
    warmup_steps: int
    decay_fraction: float
    log_every: int
    save_every: int


def run_loop(trainee: Trainee, options: LoopOptions, run_dir: Path, progress: Progress) -> None:
    """Train from the saved state in `run_dir`, or from scratch, up to `options.num_steps`."""
    sums: dict[str, float] = {}
    num_summed = 0
    for step in range(_resume(trainee, run_dir), options.num_steps):
        factor = learning_rate_factor(step, options.num_steps, options.warmup_steps, options.decay_fraction)
        set_learning_rate(trainee.optimizers, factor)
        for name, value in trainee.train_step(step).items():
            sums[name] = sums.get(name, 0.0) + value
        num_summed += 1
        is_last = step + 1 == options.num_steps
        if (step + 1) % options.log_every == 0 or is_last:
            entry = {"step": step + 1, **{name: value / num_summed for name, value in sums.items()}, "learning_rate": factor}
            run_folder.append_log(run_dir, entry)
            progress(step + 1, entry)
            sums, num_summed = {}, 0
        if (step + 1) % options.save_every == 0 or is_last:
            _save(trainee, run_dir, step + 1)


def _save(trainee: Trainee, run_dir: Path, step: int) -> None:
    state = {
        "step": step,
        "options": trainee.fingerprint,
        "weights": trainee.weights(),
        "optimizers": [optimizer.state_dict() for optimizer in trainee.optimizers],
    }
    run_folder.save_state(run_dir, state)


def _resume(trainee: Trainee, run_dir: Path) -> int:
    """Load saved state if there is any; returns the step to go on with."""
    run_dir.mkdir(parents=True, exist_ok=True)
    state = run_folder.load_state(run_dir)
    if state is None:
        run_folder.truncate_log(run_dir, 0)
        return 0
    if state["options"] != trainee.fingerprint:
        raise InvalidInputError("output", str(run_dir), "the folder of a run with the same options, or a new one")
    trainee.load_weights(state["weights"])
    for optimizer, saved in zip(trainee.optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(saved)
    run_folder.truncate_log(run_dir, state["step"] + 1)
    return int(state["step"])

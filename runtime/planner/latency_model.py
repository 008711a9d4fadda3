"""Step time as a function of role, rows, tokens and history, fitted to measured steps.

    t = fixed + rise * log2(B*S) + compute * B*S + row * B + read * B*history

All five terms cost time, so none may be negative. `fixed` holds launches and the weights, read once however many tokens there
are; `compute` is what a token costs once the device is busy; `rise` is the way between: kernels of a few tokens keep a part of
the device idle, and larger ones are chosen in steps of powers of two. `read` is the cache. A calibrated model multiplies this
by what the fit misses at the measured steps (see `local_factors`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from nemodiff_trt.errors import BundleError, InvalidInputError
from nemodiff_trt.runtime.planner.local_factors import LocalFactors
from nemodiff_trt.vocabulary import Role


@dataclass(frozen=True, slots=True)
class Step:
    """One engine run: B rows of S tokens each, with `history` tokens in the cache of a row on average."""

    role: Role
    batch: int
    step: int
    history: float

    @classmethod
    def of_run(cls, role: Role, input_ids: np.ndarray, lengths: np.ndarray) -> Step:
        """What a session is asked to run: token ids [B,S], behind `lengths` [B or more] cached tokens of each row."""
        batch, step = input_ids.shape
        return cls(role, batch, step, int(lengths[:batch].sum()) / batch)


@dataclass(frozen=True, slots=True)
class StepTime:
    """Milliseconds that a step took."""

    step: Step
    ms: float


@dataclass(frozen=True, slots=True)
class Coefficients:
    """Of the terms above: milliseconds, and milliseconds per unit."""

    fixed: float
    rise: float
    compute: float
    row: float
    read: float

    def ms(self, step: int, batches: np.ndarray, history: float) -> np.ndarray:
        """Of S tokens in every row and several batch sizes, float64 like `batches`."""
        tokens = batches * step
        found: np.ndarray = (
            self.fixed
            + self.rise * np.log2(tokens)
            + self.compute * tokens
            + self.row * batches
            + self.read * batches * history
        )
        return found


@dataclass(frozen=True, slots=True)
class LatencyModel:
    """Step times of one device.

    Attributes:
        device: what was measured, or what the numbers are a prediction for.
        is_prediction: not measured on the device.
        roles: terms of every role.
        factors: what the terms miss, for the roles that were calibrated.
        loop: time of a cycle in a loop over that of its steps, by block length (1 for autoregressive) and rows, ascending.
            One where nothing was measured.
    """

    device: str
    is_prediction: bool
    roles: Mapping[Role, Coefficients]
    factors: Mapping[Role, LocalFactors] = field(default_factory=dict)
    loop: Mapping[int, Mapping[int, float]] = field(default_factory=dict)

    @classmethod
    def fit(cls, device: str, times: Iterable[StepTime]) -> LatencyModel:
        """Least squares of relative errors, role by role.

        Raises:
            InvalidInputError: a role has fewer measured steps than the model has terms.
        """
        return cls(device, False, {role: _fit(role, measured) for role, measured in _by_role(times).items()})

    @classmethod
    def calibrate(cls, device: str, times: Iterable[StepTime]) -> LatencyModel:
        """The fit, and what it misses at every measured step.

        Time rises with the history along a line at every shape of a step, so measured times are moved onto one first: noise of
        single steps would lead a choice astray.

        Raises:
            InvalidInputError: a role has fewer measured steps than the model has terms.
        """
        by_role = _by_role(_on_lines(list(times)))
        fitted = cls(device, False, {role: _fit(role, own) for role, own in by_role.items()})
        factors = {
            role: LocalFactors.of_ratios(
                (time.step.step, time.step.batch, round(time.step.history), time.ms / fitted.ms(time.step)) for time in own
            )
            for role, own in by_role.items()
        }
        return replace(fitted, factors=factors)

    def ms(self, step: Step) -> float:
        """Predicted milliseconds.

        Raises:
            InvalidInputError: nothing is known about the role.
        """
        return float(self.row(step.role, step.step, np.array([step.batch]), step.history)[0])

    def row(self, role: Role, step: int, batches: np.ndarray, history: float) -> np.ndarray:
        """Predicted milliseconds of S tokens in every row and several batch sizes, float64 like `batches`.

        Raises:
            InvalidInputError: nothing is known about the role.
        """
        if role not in self.roles:
            raise InvalidInputError("role", str(role), f"{', '.join(sorted(self.roles))} in the latency model")
        ms = self.roles[role].ms(step, batches, history)
        factors = self.factors.get(role)
        return ms if factors is None else ms * factors.row(step, batches, history)

    def loop_row(self, block_length: int, batches: np.ndarray) -> np.ndarray:
        """What to multiply the time of a cycle's steps by for several batch sizes, float64 like `batches`.

        Interpolated over the logarithm of the batch size.
        """
        measured = self.loop.get(block_length)
        if not measured:
            return np.ones(len(batches))
        found: np.ndarray = np.interp(np.log(batches), np.log(list(measured)), list(measured.values()))
        return found

    def to_bytes(self) -> bytes:
        """As JSON."""
        roles = {str(role): asdict(terms) for role, terms in sorted(self.roles.items())}
        factors = {str(role): own.to_json() for role, own in sorted(self.factors.items())}
        loop = [[length, rows, factor] for length, own in self.loop.items() for rows, factor in own.items()]
        content = {
            "device": self.device, "is_prediction": self.is_prediction, "roles": roles, "factors": factors, "loop": loop
        }  # fmt: skip
        return (json.dumps(content, indent=1) + "\n").encode()

    @classmethod
    def read(cls, path: Path) -> LatencyModel:
        """Of a file that `nemodiff calibrate` wrote.

        Raises:
            BundleError: it is missing or not such a file.
        """
        try:
            return cls._of(json.loads(path.read_text(encoding="utf-8")))
        except OSError as error:
            raise BundleError(f"{path}: no step times ({error.strerror}); run nemodiff calibrate") from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise BundleError(f"{path}: not a file of step times ({error}); run nemodiff calibrate again") from error

    @classmethod
    def _of(cls, content: Any) -> LatencyModel:
        roles = {Role(name): Coefficients(**{key: float(value) for key, value in terms.items()}) for name, terms in
                 content["roles"].items()}  # fmt: skip
        if any(not math.isfinite(value) or value < 0 for terms in roles.values() for value in asdict(terms).values()):
            raise ValueError("a term is negative or not finite")
        factors = {Role(name): LocalFactors.from_json(own) for name, own in content["factors"].items()}
        loop: dict[int, dict[int, float]] = {}
        for length, rows, factor in sorted(content["loop"]):
            if min(length, rows) < 1 or not 0 < factor < math.inf:
                raise ValueError("a factor of the loop is not a positive number for a block length and rows")
            loop.setdefault(int(length), {})[int(rows)] = float(factor)
        return cls(str(content["device"]), bool(content["is_prediction"]), roles, factors, loop)


def latency_file(bundle: Path) -> Path:
    """Default place: beside the bundle, in which nothing may be added."""
    bundle = bundle.absolute()
    return bundle.with_name(f"{bundle.name}.latency.json")


def measured_latency(bundle: Path) -> LatencyModel | None:
    """Step times measured for a bundle; None where there are none.

    Raises:
        BundleError: the file is damaged, or holds a prediction, which mode `auto` does not choose by.
    """
    path = latency_file(bundle)
    if not path.exists():
        return None
    model = LatencyModel.read(path)
    if model.is_prediction:
        raise BundleError(
            f"{path}: a prediction for {model.device}, and mode auto chooses by measured times; run nemodiff calibrate"
        )
    return model


def _by_role(times: Iterable[StepTime]) -> dict[Role, list[StepTime]]:
    by_role: dict[Role, list[StepTime]] = {}
    for time in times:
        by_role.setdefault(time.step.role, []).append(time)
    return by_role


def _on_lines(times: Sequence[StepTime]) -> list[StepTime]:
    """Times on the line over the history that fits best, by relative errors; as they are for fewer than three histories."""
    shapes: dict[tuple[Role, int, int], list[StepTime]] = {}
    for time in times:
        shapes.setdefault((time.step.role, time.step.batch, time.step.step), []).append(time)
    found = []
    for own in shapes.values():
        histories, ms = np.array([time.step.history for time in own]), np.array([time.ms for time in own])
        if len(set(histories)) > 2:
            fitted = np.polynomial.Polynomial.fit(histories, ms, 1, w=1 / ms)(histories)
            # A line through noise may cross zero.
            ms = np.maximum(fitted, ms.min() / 2)
        found += [StepTime(time.step, float(value)) for time, value in zip(own, ms, strict=True)]
    return found


def _fit(role: Role, times: list[StepTime]) -> Coefficients:
    terms = np.array([_terms(time.step) for time in times])
    if len(times) < terms.shape[1]:
        raise InvalidInputError("times", f"{len(times)} steps of role {role}", f"at least {terms.shape[1]}")
    weights = 1 / np.array([time.ms for time in times])
    return Coefficients(*_non_negative(terms * weights[:, None]))


def _terms(step: Step) -> list[float]:
    tokens = step.batch * step.step
    return [1.0, math.log2(tokens), tokens, step.batch, step.batch * step.history]


def _non_negative(scaled: np.ndarray) -> list[float]:
    """Non-negative x that brings `scaled` x nearest to one: the best of the least-squares fits to every choice of terms.

    Few terms make few choices, and the one that wins satisfies the conditions of the problem.
    """
    count = scaled.shape[1]
    # Columns of like size: tokens in a cache are many, and their time is small.
    size = np.maximum(np.abs(scaled).max(axis=0), np.finfo(float).tiny)
    best, best_error = np.zeros(count), float(len(scaled))
    for choice in range(1, 1 << count):
        columns = [index for index in range(count) if choice >> index & 1]
        found = np.linalg.lstsq(scaled[:, columns] / size[columns], np.ones(len(scaled)), rcond=None)[0]
        error = float(((scaled[:, columns] / size[columns] @ found - 1) ** 2).sum())
        if (found >= 0).all() and error < best_error - 1e-12:
            best, best_error = np.zeros(count), error
            best[columns] = found / size[columns]
    return [float(value) for value in best]

"""What a load run showed: are the answers right, how long did they take, and a plot of that under rising load."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from load_generator import Call, Outcome

from nemodiff_trt.runtime.answer import GenerationResult
from nemodiff_trt.runtime.engine import TriModeEngine
from nemodiff_trt.runtime.options import GenerationOptions

PERCENTILES = (50, 90, 99)


def expected_answers(engine: TriModeEngine, calls: list[Call]) -> dict[int, GenerationResult]:
    """Answer every call that is not flawed in this process, by number."""
    numbers = {
        engine.submit(call.prompt, GenerationOptions().changed(**call.options), stream_text=False): call.number
        for call in calls
        if call.flaw is None
    }
    answers = {}
    while engine.has_work:
        for reported in engine.step():
            if reported.event.result is not None:
                answers[numbers[reported.request]] = reported.event.result
    return answers


@dataclass(slots=True)
class Verdict:
    """Numbers of calls by what became of them. A run is good when `wrong` is empty."""

    equal: list[int] = field(default_factory=list)
    left: list[int] = field(default_factory=list)
    refused: list[int] = field(default_factory=list)
    wrong: dict[int, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        counts = {"equal": len(self.equal), "left": len(self.left), "refused": len(self.refused), "wrong": len(self.wrong)}
        return counts | {"first_wrong": dict(list(self.wrong.items())[:5])}


def judge(
    outcomes: list[Outcome], answers: Mapping[int, GenerationResult], names: Mapping[str, tuple[str, ...]] | None = None
) -> Verdict:
    """Compare every outcome with the answer of this process: complete ones are equal, those left are a beginning of it.

    A flawed call must have been refused with an error that names the field; `names` has what the server calls a field, where
    that is not its own name.
    """
    verdict = Verdict()
    known = names or {}
    for outcome in outcomes:
        number, flaw = outcome.call.number, outcome.call.flaw
        if flaw is not None:
            told = outcome.refused or ""
            if any(name in told for name in known.get(flaw.field, (flaw.field,))):
                verdict.refused.append(number)
            else:
                verdict.wrong[number] = f"flawed {flaw.field}, but: {_told(outcome)}"
        elif outcome.broken or outcome.refused:
            verdict.wrong[number] = _told(outcome)
        elif (difference := _difference(outcome, answers[number])) is not None:
            verdict.wrong[number] = difference
        else:
            (verdict.left if outcome.was_left else verdict.equal).append(number)
    return verdict


def _told(outcome: Outcome) -> str:
    if outcome.refused is not None:
        return f"refused: {outcome.refused}"
    return f"broken: {outcome.broken}" if outcome.broken is not None else f"answered: {outcome.text!r}"


def _difference(outcome: Outcome, answer: GenerationResult) -> str | None:
    tokens = list(answer.token_ids)
    if outcome.was_left:
        is_equal = answer.text.startswith(outcome.text) and outcome.token_ids == tokens[: len(outcome.token_ids)]
        return None if is_equal else f"{outcome.text!r} is no beginning of {answer.text!r}"
    if outcome.text != answer.text or (outcome.token_ids and outcome.token_ids != tokens):
        return f"{outcome.text!r} in place of {answer.text!r}"
    return None


def percentiles_ms(seconds: list[float]) -> dict[str, float]:
    """p50, p90 and p99 in milliseconds; nothing of an empty list."""
    if not seconds:
        return {}
    return {f"p{share}": float(np.percentile(seconds, share)) * 1e3 for share in PERCENTILES}


@dataclass(frozen=True, slots=True)
class Latency:
    """Of the complete answers of one run.

    Attributes:
        rate: requests offered a second, None when a number of them was kept in flight.
        answered: complete answers.
        tokens_per_second: of all answers, from the first request to the last end.
        first_token_ms: from sending to the first token, by percentile.
        between_pieces_ms: from one piece with tokens to the next, what a reader waits for.
        per_token_ms: of one answer, (last - first token) / (tokens - 1), by percentile over answers.
        whole_ms: from sending to the end.
    """

    rate: float | None
    answered: int
    tokens_per_second: float
    first_token_ms: dict[str, float]
    between_pieces_ms: dict[str, float]
    per_token_ms: dict[str, float]
    whole_ms: dict[str, float]

    @classmethod
    def of(cls, outcomes: list[Outcome], rate: float | None = None) -> Latency:
        done = [outcome for outcome in outcomes if outcome.finish_reason is not None]
        seconds = max(outcome.end_s for outcome in outcomes) - min(outcome.begin_s for outcome in outcomes)
        told = [outcome for outcome in done if outcome.piece_s]
        gaps = [gap for outcome in told for gap in np.diff(outcome.piece_s).tolist()]
        # The first piece may bring several tokens; those are not waited for.
        later = [(outcome, outcome.num_tokens - outcome.piece_tokens[0]) for outcome in told]
        return cls(
            rate=rate,
            answered=len(done),
            tokens_per_second=sum(outcome.num_tokens for outcome in outcomes) / seconds,
            first_token_ms=percentiles_ms([outcome.piece_s[0] - outcome.begin_s for outcome in told]),
            between_pieces_ms=percentiles_ms(gaps),
            per_token_ms=percentiles_ms([(out.piece_s[-1] - out.piece_s[0]) / count for out, count in later if count]),
            whole_ms=percentiles_ms([outcome.end_s - outcome.begin_s for outcome in done]),
        )

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def plot_load(levels: list[Latency], path: Path, title: str) -> None:
    """Write a picture of latency over offered load to `path`: time to first token, time between pieces, tokens per second."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(12, 3.6), layout="constrained")
    rates = [level.rate or 0.0 for level in levels]
    for axis, name, label in zip(
        axes, ("first_token_ms", "between_pieces_ms"), ("time to first token", "time between pieces"), strict=False
    ):
        for share, style in (("p50", "-"), ("p99", "--")):
            values = [getattr(level, name).get(share, np.nan) for level in levels]
            axis.plot(rates, values, style, marker="o", color="C0", label=share)
        axis.set(ylabel=f"{label}, ms", yscale="log")
        axis.legend()
    axes[2].plot(rates, [level.tokens_per_second for level in levels], marker="o", color="C1")
    axes[2].set(ylabel="tokens/s", ylim=(0, None))
    for axis in axes:
        axis.set(xlabel="requests offered per second")
        axis.grid(visible=True, alpha=0.3)
    figure.suptitle(title)
    figure.savefig(path, dpi=120)
    plt.close(figure)

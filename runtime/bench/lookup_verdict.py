"""Where the model's own drafts are worth more than look-up drafts, and where copying wins: tokens per forward by category."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nemodiff_trt.runtime.bench.settings import LOOKUP_DRAFTER, MODEL_DRAFTER
from nemodiff_trt.vocabulary import Mode

Run = dict[str, Any]


def lookup_verdicts(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Compare `self_speculation` with `prompt_lookup`, both with our verifier, for every workload and block length with both.

    Of each pair the runs of the lowest concurrency are taken. `lookup_wins` names the categories in which self-speculation does
    not emit more tokens per forward; a category without any forward is left out.
    """
    pairs: dict[tuple[str, int], dict[str, Run]] = {}
    for run in sorted(runs, key=lambda run: run["concurrency"]):
        if run["mode"] == Mode.SELF_SPECULATION and run["drafter"] in (MODEL_DRAFTER, LOOKUP_DRAFTER):
            pairs.setdefault((run["workload"], run["block_length"]), {}).setdefault(run["drafter"], run)
    return [
        _verdict(workload, block_length, pair[MODEL_DRAFTER], pair[LOOKUP_DRAFTER])
        for (workload, block_length), pair in pairs.items()
        if len(pair) == 2
    ]


def verdict_line(verdict: dict[str, Any]) -> str:
    """What a verdict says, in one sentence."""
    wins, total = verdict["lookup_wins"], len(verdict["categories"])
    where = f"{verdict['workload']}, B={verdict['block_length']}"
    return f"{where}: self_speculation wins on {total - len(wins)} of {total}, look-up on {', '.join(wins) or 'none'}"


def _verdict(workload: str, block_length: int, model: Run, lookup: Run) -> dict[str, Any]:
    categories = {}
    for name, numbers in model["categories"].items():
        own, other = numbers["tokens_per_forward"], lookup["categories"][name]["tokens_per_forward"]
        if own is not None and other is not None:
            categories[name] = {"self_speculation": own, "prompt_lookup": other, "answers": numbers["answers"]}
    return {
        "workload": workload,
        "block_length": block_length,
        "self_speculation": model["tokens_per_forward"],
        "prompt_lookup": lookup["tokens_per_forward"],
        "categories": categories,
        "lookup_wins": [name for name, pair in categories.items() if pair["self_speculation"] <= pair["prompt_lookup"]],
    }

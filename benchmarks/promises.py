"""What this repository promises of its speed, and what a run measured for it."""

from __future__ import annotations

from typing import Any

from bundles import BuildCost
from measure import Target, median_ratio
from step_times import capacity_ratio

from nemodiff_trt.runtime.bench.settings import MODEL_DRAFTER, REFERENCE, TRANSFORMERS

MAX_MINUTES = 20.0
Run = dict[str, Any]


def promises(bench: dict[str, Any], cost: BuildCost, capacities: list[dict[str, Any]], seconds: float) -> dict[str, Target]:
    """Of a `nemodiff bench` result with `ar`, `self_speculation` and both look-up baselines, at concurrency 1 and others.

    Args:
        bench: the result.
        cost: of building its bundle.
        capacities: rows of `capacity_table`.
        seconds: of the whole run.
    """
    alone = {run["case"]: run for run in bench["runs"] if run["concurrency"] == 1}
    ar = alone[REFERENCE]
    speculative = [run for run in alone.values() if run["drafter"] == MODEL_DRAFTER]
    best = max(speculative, key=lambda run: run["speed_over_ar"])
    lossless = [run for run in bench["runs"] if run["is_lossless"]]
    verdicts = bench["lookup_verdicts"]
    drafts = [verdict["self_speculation"] / verdict["prompt_lookup"] for verdict in verdicts]
    return {
        "lossless_answers_unlike_ar": Target(sum(run["answers_unlike_ar"] for run in lossless), at_most=0),
        "ar_over_transformers": Target(median_ratio(alone[TRANSFORMERS]["seconds"], ar["seconds"]), at_least=3.0),
        "self_speculation_over_ar": Target(best["speed_over_ar"], at_least=1.3),
        "self_speculation_over_prompt_lookup_per_forward": Target(min(drafts), at_least=1.0),
        # Copying wins where answers copy; the page names the categories.
        "most_categories_won_by_prompt_lookup": Target(max(len(each["lookup_wins"]) for each in verdicts), at_most=2),
        "engine_share_of_decode_time": Target(min(run["engine_share"] for run in (ar, best)), at_least=0.85),
        # Equal but for noise; without the slice before attention it is a factor of 10 and more.
        "slowest_over_fastest_cache_capacity": Target(capacity_ratio(capacities), at_most=1.2),
        "build_seconds": Target(cost.seconds, at_most=60.0),
        "build_peak_gb": Target(cost.peak_bytes / 1e9, at_most=2.0),
        "minutes": Target(seconds / 60, at_most=MAX_MINUTES),
    }

"""docs/benchmarks.md: what it says is what the result says, and targets are judged by the runs that they are about."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
CATEGORIES = ("copying", "code")
PUBLISHED = "## Published figures of other stacks\nA GPU: 851 tokens/s."


@pytest.fixture(autouse=True)
def _benchmarks_on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    # The scripts import each other as Python runs them: from their own folder.
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def numbers(tokens_per_forward: float, mean: float | None) -> dict[str, Any]:
    acceptance = {"cycles": 4, "mean": mean, "mean_drafts": 1.0, "histogram": [1, 0, 3, 0, 0], "by_position": [0.75]}
    return {
        "answers": 7,
        "tokens_per_forward": tokens_per_forward,
        "reference_tokens_per_forward": tokens_per_forward - 0.11,
        "computed_tokens": 2.22,
        "accuracy": 6 / 7,
        "acceptance": acceptance if mean else None,
    }


def run(case: str, speed: float, **changes: Any) -> dict[str, Any]:
    mode, drafter, tokens = changes.pop("mode", "ar"), changes.pop("drafter", None), changes.pop("tokens_per_forward", 1.0)
    mean = 2 * tokens if drafter else None
    shares = {"p50": 1000 / speed, "p95": 1500 / speed, "p99": 2000 / speed}
    return {
        "workload": "generated",
        "case": case,
        "mode": mode,
        "block_length": 8 if drafter else None,
        "threshold": None,
        "drafter": drafter,
        "concurrency": 1,
        "is_lossless": True,
        "answers_unlike_ar": 0,
        **numbers(tokens, mean),
        "categories": {name: numbers(tokens + place, mean) for place, name in enumerate(CATEGORIES)},
        "timed_answers": 3,
        "seconds": [100 / speed, 101 / speed],
        "prefill_s": 0.125,
        "decode_s": 1.375,
        "time_to_first_token_ms": shares,
        "inter_token_ms": shares,
        "burst_gap_ms": shares,
        "user_tokens_per_second": speed,
        "system_tokens_per_second": speed - 7,
        "engine_share": 0.91,
        "speed_over_ar": speed / 100,
    } | changes


def result() -> dict[str, Any]:
    speculative = {"mode": "self_speculation", "tokens_per_forward": 3.25}
    runs = [
        run("ar", 100.0),
        run("self_speculation B=8", 250.0, drafter="model", **speculative),
        run("diffusion B=8 t=0.9", 210.0, mode="diffusion", is_lossless=False, answers_unlike_ar=2),
        run("prompt_lookup B=8", 120.0, drafter="prompt look-up", **speculative),
        run("transformers", 25.0, mode=None, engine_share=None),
        run("ar", 40.0, concurrency=4),
    ]
    verdict = {
        "workload": "generated",
        "block_length": 8,
        "self_speculation": 3.6,
        "prompt_lookup": 1.8,
        "categories": {
            "copying": {"self_speculation": 3.37, "prompt_lookup": 3.85, "answers": 7},
            "code": {"self_speculation": 3.75, "prompt_lookup": 1.37, "answers": 7},
        },
        "lookup_wins": ["copying"],
    }
    bench = {
        "bundle": {"build_key": "ab" * 32, "target": "onnxruntime", "precision": "fp32", "num_layers": 6, "hidden_size": 256},
        "hardware": {"cpu": "A CPU", "cpus": 2, "threads_used": 2, "memory_gib": 24.5, "read_gb_per_s_one_thread": 9.75},
        "versions": {"torch": "2.13.0"},
        "settings": {"max_new_tokens": 128, "num_repeats": 2},
        "workloads": [{"name": "generated", "prompts": 14, "categories": {"copying": 7, "code": 7}}],
        "runs": runs,
        "lookup_verdicts": [verdict],
        "step_times": [{"role": "verify", "batch": 2, "step": 16, "history": 100.0, "ms": 4.375}],
    }
    return {
        "commit": "0123456789ab",
        "checkpoint": "nemodiff-tiny",
        "seconds": 630.0,
        "bench": bench,
        "capacity_ms": [
            {"capacity": capacity, "step": 1, "used_tokens": 100, "ms": ms} for capacity, ms in ((256, 1.0), (4096, 1.125))
        ],
        "targets": {
            "ar_over_transformers": {"value": 4.0, "at_least": 3.0, "met": True},
            "minutes": {"value": 25.5, "at_most": 20.0, "met": False},
        },
    }


def rows_of(page: str, heading: str) -> dict[str, list[str]]:
    """Table rows of a section by their first cell."""
    section = page.split(f"## {heading}")[1].split("\n## ", maxsplit=1)[0]
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in section.splitlines() if line.startswith("|")]
    return {row[0]: row[1:] for row in cells}


class TestPage:
    @pytest.fixture
    def page(self, _benchmarks_on_path: None) -> str:
        from page import render_page

        return str(render_page(result(), PUBLISHED))

    @pytest.mark.parametrize(
        ("heading", "row", "cells"),
        [
            ("Targets", "ar_over_transformers", ["4", "at least 3", "yes"]),
            ("Targets", "minutes", ["25.5", "at most 20", "**no**"]),
            ("Modes and baselines: what", "self_speculation B=8", ["85.7%", "0 of 7", "3.25", "3.14", "2.22", "6.50"]),
            ("Modes and baselines: what", "diffusion B=8 t=0.9", ["85.7%", "2 of 7, not lossless", "1.00", "0.89", "2.22", ""]),
            (
                "Modes and baselines: how",
                "ar",
                ["100", "93", "1.00", "10.0", "15.0", "10.00", "15.00", "0.12", "1.38", "91.0%"],
            ),
            ("Own drafts", "copying", ["3.37", "**3.85**"]),
            ("Own drafts", "code", ["3.75", "1.37"]),
            ("Own drafts", "all", ["3.60", "1.80"]),
            ("Acceptance", "code", ["4", "6.50", "25.0%", "75.0%", "0.0%"]),
            ("Exact answers", "all", ["85.7%", "85.7%"]),
            ("Requests at a time", "ar", ["93 / 100 / 1.00", "33 / 40 / 0.40"]),
            ("One engine run", "verify, 2", ["4.38"]),
            ("One engine run", "S=1", ["1.00", "1.12"]),
        ],
    )
    def test_its_numbers_are_those_of_the_result(self, page: str, heading: str, row: str, cells: list[str]) -> None:
        assert rows_of(page, heading)[row] == cells

    def test_it_says_what_was_measured_where(self, page: str) -> None:
        for told in ("make bench", "10.5 minutes", "0123456789ab", "CPU only: A CPU, 2 of 2 cores", "14 held-out", "7 of each"):
            assert told in page
        assert "- generated, B=8: self_speculation wins on 1 of 2, look-up on copying\n" in page

    def test_figures_of_others_stand_apart_and_last(self, page: str) -> None:
        assert page.endswith(PUBLISHED + "\n")
        assert "851" not in page.removesuffix(PUBLISHED + "\n")

    def test_all_tables_are_rectangular(self, page: str) -> None:
        for block in re.findall(r"(?:^\|.*\n)+", page, flags=re.MULTILINE):
            assert len({line.count("|") for line in block.splitlines()}) == 1

    def test_a_changed_result_changes_the_page(self, page: str) -> None:
        from page import render_page

        changed = copy.deepcopy(result())
        changed["bench"]["runs"][1]["tokens_per_forward"] = 9.87
        assert "9.87" in render_page(changed, PUBLISHED)
        assert "9.87" not in page


class TestPromises:
    def met(self, **changes: Any) -> dict[str, bool]:
        from bundles import BuildCost
        from promises import promises

        given = copy.deepcopy(result())
        for name, change in changes.items():
            place = next(place for place, each in enumerate(given["bench"]["runs"]) if each["case"].startswith(name))
            given["bench"]["runs"][place] |= change
        cost = BuildCost(seconds=6.0, peak_bytes=10**9)
        return {
            name: target.is_met
            for name, target in promises(given["bench"], cost, given["capacity_ms"], given["seconds"]).items()
        }

    def test_all_are_met(self) -> None:
        assert all(self.met().values())

    @pytest.mark.parametrize(
        ("name", "changes"),
        [
            ("ar_over_transformers", {"transformers": {"seconds": [2.9, 2.9]}}),
            ("self_speculation_over_ar", {"self_speculation": {"speed_over_ar": 1.2}}),
            ("lossless_answers_unlike_ar", {"prompt_lookup": {"answers_unlike_ar": 1}}),
            ("engine_share_of_decode_time", {"ar": {"engine_share": 0.8}}),
        ],
    )
    def test_one_is_missed(self, name: str, changes: dict[str, Any]) -> None:
        assert [missed for missed, is_met in self.met(**changes).items() if not is_met] == [name]

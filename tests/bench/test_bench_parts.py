"""Prompt files, accounting by hand, result files, comparison and the report of a run."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from nemodiff_trt.errors import InvalidInputError
from nemodiff_trt.runtime.bench.accounting import acceptance, counts, percentiles, times
from nemodiff_trt.runtime.bench.case_styles import case_styles
from nemodiff_trt.runtime.bench.compare import compare
from nemodiff_trt.runtime.bench.lookup_verdict import lookup_verdicts, verdict_line
from nemodiff_trt.runtime.bench.prompt_files import read_workload
from nemodiff_trt.runtime.bench.report import render
from nemodiff_trt.runtime.bench.result_file import read_result
from nemodiff_trt.runtime.bench.settings import LOOKUP_DRAFTER, BenchSettings
from nemodiff_trt.runtime.bench.trace import Trace
from nemodiff_trt.runtime.bench.workload import BenchPrompt
from nemodiff_trt.runtime.cli.output import write_atomically
from nemodiff_trt.vocabulary import Mode


def written(folder: Path, *rows: object) -> Path:
    path = folder / "questions.jsonl"
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows), encoding="utf-8")
    return path


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


class TestPromptFiles:
    @pytest.mark.parametrize(
        ("row", "wanted"),
        [
            ({"prompt": "Hi", "answer": "Ho"}, BenchPrompt("questions", (user("Hi"),), "Ho")),
            # Spec-Bench.
            (
                {"question_id": 81, "category": "writing", "turns": ["One", "Two"], "reference": ["x"]},
                BenchPrompt("writing", (user("One"),)),
            ),
            # SPEED-Bench, as published and as prepared.
            (
                {"question_id": "a" * 32, "category": "qa", "turns": ["One"], "multiturn": False},
                BenchPrompt("qa", (user("One"),)),
            ),
            (
                {"category": "qa", "messages": [{"role": "system", "content": "S"}, user("One"), user("Two")]},
                BenchPrompt("qa", ({"role": "system", "content": "S"}, user("One"))),
            ),
        ],
    )
    def test_forms(self, tmp_path: Path, row: dict[str, Any], wanted: BenchPrompt) -> None:
        workload = read_workload(written(tmp_path, row, "", row), limit=1)
        assert workload.name == "questions"
        assert workload.prompts == (wanted,)

    @pytest.mark.parametrize(
        "bad",
        [
            "{",
            "[1]",
            {"category": "a"},
            {"prompt": "a", "turns": ["b"]},
            {"prompt": 3},
            {"turns": []},
            {"turns": [1]},
            {"messages": [{"role": "user"}]},
            {"messages": [{"role": "system", "content": "a"}]},
            {"prompt": " "},
            {"prompt": "a", "category": 3},
            {"prompt": "a", "answer": 3},
            {"turns": ["FULL BENCHMARK DATA SHOULD BE FETCHED FROM THE SOURCE USING SPECDEC_BENCH"]},
        ],
    )
    def test_a_bad_line_is_named_even_behind_the_limit(self, tmp_path: Path, bad: object) -> None:
        path = written(tmp_path, {"prompt": "fine"}, bad)
        with pytest.raises(InvalidInputError, match=re.escape(f"{path}, line 2")):
            read_workload(path, limit=1)

    def test_files_without_prompts(self, tmp_path: Path) -> None:
        with pytest.raises(InvalidInputError, match="at least one prompt"):
            read_workload(written(tmp_path, ""))
        with pytest.raises(InvalidInputError, match="readable file"):
            read_workload(tmp_path / "nothing.jsonl")


# Seven tokens in three cycles: 3 + own, 0 + own, 1 + own make 7 behind the first, which came with those of the first cycle.
TRACE = Trace(tuple(range(8)), 6, 7, 22, ((3, 3), (3, 0), (2, 1)), 0.5, 0.4, 0.3, (0.6, 0.7, 0.9))
PLAIN = Trace((1, 2, 3), 2, 3, 2, (), 0.25, 0.2, 0.2, (0.25, 0.35, 0.45))


class TestAccounting:
    def test_counts(self) -> None:
        found = counts([TRACE, PLAIN], [True, None])
        assert found["tokens_per_forward"] == pytest.approx(9 / 8)
        assert found["reference_tokens_per_forward"] == pytest.approx(11 / 10)
        assert found["computed_tokens"] == pytest.approx(24 / 9)
        assert (found["accuracy"], found["graded"]) == (1.0, 1)
        assert counts([PLAIN], [None])["accuracy"] is None

    def test_acceptance(self) -> None:
        found = acceptance(TRACE.cycles, TRACE.later_tokens)
        assert found is not None
        assert found["histogram"] == [1, 1, 0, 1]
        # Two cycles offered a third draft, one of them had it accepted.
        assert found["by_position"] == pytest.approx([2 / 3, 1 / 3, 1 / 2])
        assert found["mean"] == pytest.approx(7 / 3)
        assert acceptance([], 3) is None

    def test_times(self) -> None:
        found = times([[TRACE, PLAIN], [TRACE, PLAIN]], [1.0, 2.0])
        assert found["system_tokens_per_second"] == pytest.approx(8.25)
        assert found["user_tokens_per_second"] == pytest.approx((7 / 0.4 + 2 / 0.2) / 2)
        assert found["timed_answers"] == 2
        assert found["prefill_s"] == pytest.approx(0.75)
        # When the caller had it, not when it was computed.
        assert found["time_to_first_token_ms"]["p95"] == pytest.approx(600)
        assert found["engine_share"] == pytest.approx(0.5 / 0.6)
        assert found["inter_token_ms"]["p50"] == pytest.approx(400 / 7)
        assert found["burst_gap_ms"]["p99"] == pytest.approx(200)

    def test_percentiles(self) -> None:
        assert percentiles(range(1, 101)) == {"p50": 50, "p95": 95, "p99": 99}
        assert percentiles([]) is None


def result(case: str = "ar", speed: float = 10.0) -> dict[str, Any]:
    numbers = counts([TRACE], [True])
    run = {"workload": "w<b>", "case": case, "concurrency": 1, "answers_unlike_ar": 0, "categories": {"c": numbers}}
    run |= {"mode": "ar", "drafter": None, "block_length": None, "speed_over_ar": 1.0}
    return {
        "schema": "nemodiff-bench",
        "schema_version": 2,
        "device": "a CPU",
        "bundle": {"target": "onnxruntime", "precision": "fp32", "num_layers": 1, "hidden_size": 8, "build_key": "0" * 64},
        "hardware": {"cpu": "C", "threads_used": 1},
        "versions": {"torch": "2"},
        "settings": {},
        "workloads": [],
        "runs": [run | numbers | times([[TRACE]], [1.0]) | {"system_tokens_per_second": speed}],
        "lookup_verdicts": [],
        "step_times": [{"role": "verify", "batch": 1, "step": 4, "history": 8.0, "ms": 1.5}],
    }


def drafting_run(drafter: str, categories: dict[str, float | None], block_length: int = 8, level: int = 1) -> dict[str, Any]:
    """Of self_speculation with drafts of the model or of look-up."""
    return {
        "workload": "w",
        "mode": "self_speculation",
        "drafter": drafter,
        "block_length": block_length,
        "concurrency": level,
        "tokens_per_forward": 2.0,
        "categories": {name: {"tokens_per_forward": value, "answers": 1} for name, value in categories.items()},
    }


class TestLookupVerdict:
    def test_names_every_category_in_which_look_up_is_not_beaten(self) -> None:
        own = {"copying": 2.0, "code": 3.0, "even": 1.5, "empty": None}
        other = {"copying": 2.5, "code": 1.0, "even": 1.5, "empty": 1.0}
        (found,) = lookup_verdicts([drafting_run("model", own), drafting_run(LOOKUP_DRAFTER, other)])
        assert found["lookup_wins"] == ["copying", "even"]
        assert found["categories"].keys() == {"copying", "code", "even"}
        assert verdict_line(found) == "w, B=8: self_speculation wins on 1 of 3, look-up on copying, even"

    def test_block_lengths_are_compared_with_their_own_and_at_the_lowest_concurrency(self) -> None:
        runs = [
            drafting_run("model", {"a": 1.0}, level=4),
            *(drafting_run("model", {"a": float(length)}, length) for length in (8, 16, 32)),
            *(drafting_run(LOOKUP_DRAFTER, {"a": 10.0}, length) for length in (8, 16)),
        ]
        found = {each["block_length"]: each["lookup_wins"] for each in lookup_verdicts(runs)}
        # Without look-up at 32 there is nothing to say about it.
        assert found == {8: ["a"], 16: []}


class TestStyles:
    def test_cases_of_a_kind_share_a_colour_and_nothing_else(self) -> None:
        thresholds = [f"t={number}" for number in range(10)]
        names = [f"{kind} B={length}" for kind in ("self_speculation", "prompt_lookup") for length in (8, 16, 32)]
        names += [f"diffusion B={length} {threshold}" for threshold in thresholds for length in (8, 16, 32)]
        styles = case_styles([{"case": name} for name in names])
        assert styles["diffusion B=8 t=0"].color == styles["diffusion B=32 t=0"].color != styles["diffusion B=8 t=1"].color
        # Twelve kinds in eight colours, and still no case looks like another.
        assert len({(style.color, style.marker) for style in styles.values()}) == len(names)


class TestResults:
    def test_comparison(self) -> None:
        faster = result(speed=15.0) | {"device": "another"}
        found = compare(result(), faster)
        assert found["cases"][0]["system_tokens_per_second"] == {"first": 10.0, "second": 15.0, "ratio": 1.5}
        assert found["differences"] == {"device": ["a CPU", "another"]}
        with pytest.raises(InvalidInputError, match="compare"):
            compare(result(), result("other"))

    def test_file(self, tmp_path: Path) -> None:
        path = tmp_path / "run.json"
        write_atomically(path, json.dumps(result()))
        assert read_result(path) == result()
        assert list(tmp_path.iterdir()) == [path]
        for bad in ("{", "{}", json.dumps(result() | {"schema_version": 1}), json.dumps(result() | {"runs": [{}]})):
            path.write_text(bad, encoding="utf-8")
            with pytest.raises(InvalidInputError, match=re.escape(str(path))):
                read_result(path)

    def test_report_loads_nothing_and_escapes(self) -> None:
        runs = [drafting_run("model", {"c<": 2.0, "d": 3.0}), drafting_run(LOOKUP_DRAFTER, {"c<": 2.5, "d": 1.0})]
        page = render(result() | {"lookup_verdicts": lookup_verdicts(runs)})
        assert page.count("<svg") == 6
        assert "w&lt;b&gt;" in page
        assert "B=8: self_speculation wins on 1 of 2, look-up on c&lt;" in page
        loaded = re.findall(r"""(?:src|href)=["']([^"'#][^"']*)|url\(([^#)][^)]*)""", page)
        assert [each[0] or each[1] for each in loaded] == ["data:,"]
        ids = re.findall(r'\bid="([^"]+)"', page)
        assert len(ids) == len(set(ids))
        # Every colour is the page's, so that both themes are right.
        assert "#0708" not in page
        assert "#010203" not in page


@pytest.mark.parametrize(
    "changes",
    [
        {"modes": (Mode.AUTO,)},
        {"num_timed_prompts": 0},
        {"modes": ()},
        {"block_lengths": (8, 8)},
        {"baselines": ("x",)},
        {"num_repeats": 0},
        {"concurrency": (0,)},
    ],
)
def test_settings_refuse(changes: dict[str, Any]) -> None:
    with pytest.raises(InvalidInputError, match=next(iter(changes))):
        BenchSettings(**changes)

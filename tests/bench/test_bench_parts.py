"""Prompt files, accounting by hand, result files, comparison and the report of a run."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from nemodiff_trt.errors import InvalidInputError
from nemodiff_trt.runtime.bench.accounting import acceptance, counts, percentiles, times
from nemodiff_trt.runtime.bench.compare import compare
from nemodiff_trt.runtime.bench.prompt_files import read_workload
from nemodiff_trt.runtime.bench.report import render
from nemodiff_trt.runtime.bench.result_file import read_result
from nemodiff_trt.runtime.bench.settings import BenchSettings
from nemodiff_trt.runtime.bench.trace import Trace
from nemodiff_trt.runtime.bench.workload import BenchPrompt
from nemodiff_trt.runtime.cli.output import write_atomically


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


# Seven tokens in three cycles: 3 + own, 0 + own, 1 + own make 7 behind the first.
TRACE = Trace(tuple(range(8)), 6, 7, ((3, 3), (3, 0), (2, 1)), 0.5, (0.1, 0.2, 0.4))
PLAIN = Trace((1, 2, 3), 2, 3, (), 0.25, (0.1, 0.2))


class TestAccounting:
    def test_counts(self) -> None:
        found = counts([TRACE, PLAIN], [True, None])
        assert found["tokens_per_forward"] == pytest.approx(9 / 8)
        assert found["reference_tokens_per_forward"] == pytest.approx(11 / 10)
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
        assert found["time_to_first_token_ms"]["p95"] == pytest.approx(500)
        assert found["inter_token_ms"]["p50"] == pytest.approx(400 / 7)
        assert found["burst_gap_ms"]["p99"] == pytest.approx(200)

    def test_percentiles(self) -> None:
        assert percentiles(range(1, 101)) == {"p50": 50, "p95": 95, "p99": 99}
        assert percentiles([]) is None


def result(case: str = "ar", speed: float = 10.0) -> dict[str, Any]:
    numbers = counts([TRACE], [True])
    run = {"workload": "w<b>", "case": case, "concurrency": 1, "answers_unlike_ar": 0, "categories": {"c": numbers}}
    return {
        "schema": "nemodiff-bench",
        "schema_version": 1,
        "device": "a CPU",
        "bundle": {"target": "onnxruntime", "precision": "fp32", "num_layers": 1, "hidden_size": 8, "build_key": "0" * 64},
        "hardware": {"cpu": "C", "threads_used": 1},
        "versions": {"torch": "2"},
        "settings": {},
        "workloads": [],
        "runs": [run | numbers | times([[TRACE]], [1.0]) | {"system_tokens_per_second": speed}],
        "step_times": [{"role": "verify", "batch": 1, "step": 4, "history": 8.0, "ms": 1.5}],
    }


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
        for bad in ("{", "{}", json.dumps(result() | {"schema_version": 2}), json.dumps(result() | {"runs": [{}]})):
            path.write_text(bad, encoding="utf-8")
            with pytest.raises(InvalidInputError, match=re.escape(str(path))):
                read_result(path)

    def test_report_loads_nothing_and_escapes(self) -> None:
        page = render(result())
        assert page.count("<svg") == 5
        assert "w&lt;b&gt;" in page
        loaded = re.findall(r"""(?:src|href)=["']([^"'#][^"']*)|url\(([^#)][^)]*)""", page)
        assert [each[0] or each[1] for each in loaded] == ["data:,"]
        ids = re.findall(r'\bid="([^"]+)"', page)
        assert len(ids) == len(set(ids))
        # Every colour is the page's, so that both themes are right.
        assert "#0708" not in page
        assert "#010203" not in page


@pytest.mark.parametrize(
    "changes", [{"modes": ()}, {"block_lengths": (8, 8)}, {"baselines": ("x",)}, {"num_repeats": 0}, {"concurrency": (0,)}]
)
def test_settings_refuse(changes: dict[str, Any]) -> None:
    with pytest.raises(InvalidInputError, match=next(iter(changes))):
        BenchSettings(**changes)

"""`nemodiff bench` as it is called: a run, its files, what it makes of them again, and what it refuses before it measures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nemodiff_trt.command_line import run_app
from nemodiff_trt.runtime.cli.app import build_app


def bench(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """Exit code, standard output and standard error."""
    code = run_app(build_app(), "nemodiff", ["bench", *map(str, arguments)])
    return (code, *capsys.readouterr())


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "questions.jsonl"
    rows: list[dict[str, Any]] = [
        {"prompt": "ab ab ab ab", "category": "copying"},
        {"turns": ["c"], "category": "other"},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def options(tiny_bundle_dir: Path, prompts: Path) -> list[object]:
    return [
        *("--bundle", tiny_bundle_dir, "--workload", prompts, "--modes", "ar,self_speculation,diffusion"),
        *("--block-lengths", "4", "--max-new-tokens", 6, "--num-repeats", 1, "--num-threads", 1),
    ]


def test_a_run_its_report_and_its_comparison(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, options: list[object], tmp_path: Path
) -> None:
    # Step times are measured for every shape of the engines, which is most of the time and tested elsewhere.
    monkeypatch.setattr("nemodiff_trt.runtime.planner.calibrate.measure_steps", lambda _: [])
    run_file, report = tmp_path / "run.json", tmp_path / "run.html"
    code, out, err = bench(capsys, *options, "--output", run_file, "--report", report)
    assert code == 0, err
    result = json.loads(out)
    assert json.loads(run_file.read_text(encoding="utf-8")) == result
    cases = ["ar", "self_speculation B=4", "diffusion B=4 t=0.9", "prompt_lookup B=4"]
    assert [run["case"] for run in result["runs"]] == cases
    assert [run["answers_unlike_ar"] for run in result["runs"] if run["is_lossless"]] == [0, 0, 0]
    (verdict,) = result["lookup_verdicts"]
    assert verdict["categories"].keys() == {"copying", "other"}
    assert "questions, B=4: self_speculation wins on" in err
    page = report.read_text(encoding="utf-8")
    assert all(name in page for name in (*cases, "Throughput and speed of a user"))
    code, out, _ = bench(capsys, "--run", run_file, "--report", tmp_path / "again.html")
    assert (code, json.loads(out)) == (0, result)
    assert (tmp_path / "again.html").read_text(encoding="utf-8") == page
    code, out, _ = bench(capsys, "--compare", run_file, run_file)
    compared = json.loads(out)
    assert code == 0
    assert compared["differences"] == {}
    assert all(case["system_tokens_per_second"]["ratio"] == 1.0 for case in compared["cases"])


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (["--modes", "ar,beam"], ["modes", "beam", "ar, diffusion, self_speculation, quadratic"]),
        (["--modes", "auto"], ["modes", "auto", "ar, diffusion, self_speculation, quadratic"]),
        (["--block-lengths", "4,x"], ["block-lengths", "4,x"]),
        (["--baselines", "eagle"], ["baselines", "eagle", "prompt_lookup"]),
        (["--num-timed-prompts", "0"], ["num_timed_prompts", "0"]),
        (["--baselines", "transformers"], ["baselines", "transformers", "--checkpoint"]),
        (["--output", "/nowhere/run.json"], ["output", "/nowhere/run.json"]),
    ],
)
def test_bad_input_is_one_line_that_says_what_is_allowed(
    capsys: pytest.CaptureFixture[str], options: list[object], changes: list[str], told: list[str]
) -> None:
    code, out, err = bench(capsys, *options, *changes)
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1
    assert all(part in err for part in told), err

"""The speed benchmark: what it compares is equal, how it judges, and (slow) a whole run on a random checkpoint."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nemodiff_trt.bundle import Bundle
from nemodiff_trt.plugins.decision_head import decision_head_reference
from nemodiff_trt.runtime.session_onnxruntime import OnnxRuntimeSession
from nemodiff_trt.runtime.tri_mode_lm import TriModeLM
from nemodiff_trt.tokenizer import Tokenizer
from nemodiff_trt.vocabulary import Role

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture(autouse=True)
def _benchmarks_on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    # The scripts import each other as Python runs them: from their own folder.
    monkeypatch.syspath_prepend(str(BENCHMARKS))


@pytest.fixture(scope="module")
def model(tiny_bundle: Bundle) -> TriModeLM:
    return TriModeLM(OnnxRuntimeSession.open(tiny_bundle, num_threads=1), Tokenizer.from_dir(tiny_bundle.tokenizer_dir))


class TestStepTimes:
    def test_table_has_a_time_for_every_shape_the_engines_take(self, model: TriModeLM) -> None:
        from step_times import step_table

        rows = step_table(model.session, [1, 2, 8, 16], [1, 4, 8], num_repeats=2)
        shapes = {(row.step.role, row.step.step, row.step.batch) for row in rows}
        wanted = {(Role.DECODE, 1, batch) for batch in (1, 4)}
        wanted |= {(role, step, batch) for role in (Role.VERIFY, Role.DRAFT) for step in (2, 8) for batch in (1, 4)}
        assert shapes == wanted
        assert all(row.ms > 0 for row in rows)

    def test_capacity_ratio_is_of_the_worse_step_length(self) -> None:
        from step_times import capacity_ratio

        rows = [
            {"capacity": capacity, "step": step, "ms": ms}
            for capacity, step, ms in ((256, 1, 1.0), (256, 16, 2.0), (1024, 1, 1.1), (1024, 16, 3.0))
        ]
        assert capacity_ratio(rows) == 1.5


class TestMeasure:
    def test_cases_take_turns_and_warm_up_is_left_out(self) -> None:
        from measure import interleaved

        order: list[str] = []
        seconds = interleaved({name: lambda name=name: order.append(name) for name in "ab"}, num_repeats=3, num_warmup=2)
        assert order == ["a", "b"] * 5
        assert {name: len(times) for name, times in seconds.items()} == {"a": 3, "b": 3}

    def test_ratio_is_taken_within_rounds(self) -> None:
        from measure import median_ratio

        # A machine that is ten times slower in one round changes no ratio.
        assert median_ratio([2.0, 20.0, 2.2], [1.0, 10.0, 1.0]) == 2.0

    def test_jobs_at_one_pace_share_the_slow_phase_of_a_machine(self) -> None:
        from pace import at_one_pace

        now = 0.0

        def job(num_steps: int, step_s: float) -> Iterator[None]:
            nonlocal now
            for _ in range(num_steps):
                # Five times slower between the seconds 10 and 30.
                now += step_s * (5.0 if 10.0 <= now < 30.0 else 1.0)
                yield

        jobs = {"short": job(1_000, 0.002), "long": job(1_000, 0.02)}
        # What is expected need not be right, in proportion only.
        seconds = at_one_pace(jobs, {"short": 4.0, "long": 40.0}, lambda: now, slice_s=0.1)
        assert seconds["long"] / seconds["short"] == pytest.approx(10.0, rel=0.05)
        assert sum(seconds.values()) == pytest.approx(now)
        assert now > 22.0

    @pytest.mark.parametrize(
        ("bounds", "value", "is_met"),
        [
            ({"at_least": 3.0}, 3.0, True),
            ({"at_least": 3.0}, 2.9, False),
            ({"at_most": 1.2}, 1.2, True),
            ({"at_most": 1.2}, 1.3, False),
        ],
    )
    def test_target(self, bounds: dict[str, float], value: float, is_met: bool) -> None:
        from measure import Target

        assert Target(value, **bounds).to_dict() == {"value": value, **bounds, "met": is_met}

    @pytest.mark.skipif(shutil.which("git") is None, reason="there is no git")
    def test_commit_says_when_files_differ_from_it(self, tmp_path: Path) -> None:
        from measure import commit

        assert commit(tmp_path) is None
        git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@example.org"]
        (tmp_path / "file").write_text("a", encoding="utf-8")
        for command in (["init", "-q"], ["add", "file"], ["commit", "-q", "-m", "first"]):
            subprocess.run([*git, *command], check=True)
        clean = commit(tmp_path)
        assert clean is not None
        assert re.fullmatch("[0-9a-f]{12}", clean)
        (tmp_path / "file").write_text("b", encoding="utf-8")
        assert commit(tmp_path) == f"{clean}, with local changes"

    def test_build_failure_carries_its_message(self, tmp_path: Path) -> None:
        from bundles import build

        with pytest.raises(RuntimeError, match=r"build failed: build_engines: error: .*checkpoint"):
            build(str(tmp_path / "none"), tmp_path / "out", max_seq_len=64, block_length=8)


@pytest.mark.slow
def test_a_whole_run_ends_in_one_json_line_and_makes_its_page(tiny_checkpoint_dir: Path, tmp_path: Path) -> None:
    options = {
        "checkpoint": tiny_checkpoint_dir,
        "num-threads": 1,
        "num-prompts": 8,
        "num-timed-prompts": 2,
        "max-new-tokens": 6,
        "max-seq-len": 400,
        "block-lengths": "4,8",
        "concurrency": "1,2",
        "capacities": "64,128",
        "num-repeats": 2,
        "num-step-repeats": 3,
        "json": tmp_path / "run.json",
        "page": tmp_path / "run.md",
        "report": tmp_path / "run.html",
    }
    arguments = [text for name, value in options.items() for text in (f"--{name}", str(value))]
    result = subprocess.run(
        [sys.executable, str(BENCHMARKS / "run.py"), *arguments], capture_output=True, text=True, check=False
    )
    assert result.stdout, result.stderr
    (line,) = result.stdout.splitlines()
    last: dict[str, Any] = json.loads(line)
    assert result.returncode == (0 if all(target["met"] for target in last["targets"].values()) else 1)
    assert last["targets"]["lossless_answers_unlike_ar"]["value"] == 0
    assert last["alone"]["ar"]["tokens_per_forward"] == 1.0
    assert last["categories_won_by_prompt_lookup"].keys() == {"4", "8"}
    whole = json.loads((tmp_path / "run.json").read_text(encoding="utf-8"))
    assert whole["targets"] == last["targets"]
    assert len(whole["bench"]["bundle"]["build_key"]) == 64
    assert [row["capacity"] for row in whole["capacity_ms"]] == [64, 64, 128, 128]
    assert (tmp_path / "run.html").read_text(encoding="utf-8").startswith("<!doctype html>")
    # Made again from the file: the same page, nothing measured.
    page = (tmp_path / "run.md").read_text(encoding="utf-8")
    again = ["--from-json", str(tmp_path / "run.json"), "--page", str(tmp_path / "again.md")]
    subprocess.run([sys.executable, str(BENCHMARKS / "run.py"), *again], capture_output=True, check=False)
    assert (tmp_path / "again.md").read_text(encoding="utf-8") == page


class TestDecisionHead:
    def test_what_is_timed_is_the_operator_alone(self, model: TriModeLM) -> None:
        from decision_head import DECODE, HEAD, NOTHING, head_engine, share_of_head

        logits = np.random.default_rng(0).standard_normal((2, 1, 300)).astype(np.float32)
        token, confidence = head_engine(300, 7, 1)(logits)
        wanted = decision_head_reference(torch.from_numpy(logits), 7)
        np.testing.assert_array_equal(token, wanted[0].numpy())
        np.testing.assert_allclose(confidence, wanted[1].numpy(), rtol=1e-5)
        row = share_of_head(model.session, batch=2, num_threads=1, num_repeats=3)
        assert row.keys() == {"batch", "share", f"{DECODE}_ms", f"{HEAD}_ms", f"{NOTHING}_ms"}
        assert row[f"{HEAD}_ms"] > 0

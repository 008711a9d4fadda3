"""The speed benchmark: what it compares is equal, how it judges, and (slow) a whole run on a random checkpoint."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nemodiff_trt.bundle import Bundle
from nemodiff_trt.checkpoint import Checkpoint
from nemodiff_trt.plugins.decision_head import decision_head_reference
from nemodiff_trt.runtime.session_onnxruntime import OnnxRuntimeSession
from nemodiff_trt.runtime.tri_mode_lm import TriModeLM
from nemodiff_trt.tokenizer import Tokenizer

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
PROMPTS = [[1, 200, 300, 210], [10, 390, 128, 129, 130, 131]]


@pytest.fixture(autouse=True)
def _benchmarks_on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    # The scripts import each other as Python runs them: from their own folder.
    monkeypatch.syspath_prepend(str(BENCHMARKS))


@pytest.fixture(scope="module")
def model(tiny_bundle: Bundle) -> TriModeLM:
    return TriModeLM(OnnxRuntimeSession.open(tiny_bundle, num_threads=1), Tokenizer.from_dir(tiny_bundle.tokenizer_dir))


class TestDecodeSpeed:
    def test_every_case_answers_like_transformers(self, model: TriModeLM, tiny_checkpoint: Checkpoint) -> None:
        from decode_speed import AR, REFERENCE, measure_decode_speed, options_of, speculative

        from nemodiff_trt.runtime.bench.reference_model import ReferenceModel

        cases = options_of([2, 8], max_new_tokens=10)
        speed = measure_decode_speed(model, ReferenceModel(tiny_checkpoint), PROMPTS, cases, num_repeats=2)
        assert speed.num_tokens == 20
        assert set(speed.seconds) == {REFERENCE, AR, speculative(2), speculative(8)}
        assert all(len(seconds) == 2 for seconds in speed.seconds.values())
        summary = speed.summary(AR)
        assert summary["tokens_per_forward"] == 1.0
        assert 0 < summary["engine_share"] <= 1
        assert speed.speed_over(AR, AR) == 1.0

    def test_other_outputs_are_refused_before_anything_is_timed(self, model: TriModeLM) -> None:
        from decode_speed import OutputsDifferError, check_outputs, options_of

        class Liar:
            def generate(self, prompt: list[int], max_new_tokens: int) -> tuple[int, ...]:
                return tuple(prompt[:1] * max_new_tokens)

        with pytest.raises(OutputsDifferError, match="ar, prompt 0"):
            check_outputs(model, Liar(), PROMPTS, options_of([4], 6))


class TestStepTimes:
    def test_table_has_a_time_for_every_shape_the_engines_take(self, model: TriModeLM) -> None:
        from step_times import step_table

        rows = step_table(model.session, [1, 2, 8, 16], [1, 4, 8], num_repeats=2)
        shapes = {(row["role"], row["step"], row["batch"]) for row in rows}
        wanted = {("decode", 1, batch) for batch in (1, 4)}
        wanted |= {(role, step, batch) for role in ("verify", "draft") for step in (2, 8) for batch in (1, 4)}
        assert shapes == wanted
        assert all(row["ms"] > 0 for row in rows)

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

    def test_build_failure_carries_its_message(self, tmp_path: Path) -> None:
        from bundles import build

        with pytest.raises(RuntimeError, match=r"build failed: build_engines: error: .*checkpoint"):
            build(str(tmp_path / "none"), tmp_path / "out", max_seq_len=64, block_length=8)


@pytest.mark.slow
def test_a_whole_run_ends_in_one_json_line(tiny_checkpoint_dir: Path) -> None:
    options = {
        "checkpoint": tiny_checkpoint_dir,
        "num-threads": 1,
        "num-prompts": 2,
        "max-new-tokens": 6,
        "max-seq-len": 400,
        "block-lengths": "4,8",
        "capacities": "64,128",
        "num-repeats": 2,
        "num-step-repeats": 3,
    }
    arguments = [text for name, value in options.items() for text in (f"--{name}", str(value))]
    result = subprocess.run(
        [sys.executable, str(BENCHMARKS / "run.py"), *arguments], capture_output=True, text=True, check=False
    )
    assert result.stdout, result.stderr
    summary: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    assert result.returncode == (0 if all(target["met"] for target in summary["targets"].values()) else 1)
    assert set(summary["targets"]) == {
        "ar_over_transformers",
        "self_speculation_over_ar",
        "engine_share_of_decode_time",
        "slowest_over_fastest_cache_capacity",
        "build_seconds",
        "build_peak_gb",
    }
    assert len(summary["build_key"]) == 64
    assert summary["versions"]["onnxruntime"]
    assert summary["hardware"]["threads_used"] == 1
    assert [row["capacity"] for row in summary["capacity_ms"]] == [64, 64, 128, 128]
    assert summary["modes"]["ar"]["tokens_per_forward"] == 1.0


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

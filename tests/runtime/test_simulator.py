"""The simulator: nothing gets lost, the same seed gives the same, and figures move the way they must."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from nemodiff_trt.command_line import run_app
from nemodiff_trt.contract import Limits
from nemodiff_trt.errors import BundleError, InvalidInputError
from nemodiff_trt.full_size import full_size_config
from nemodiff_trt.runtime.cli.app import build_app
from nemodiff_trt.runtime.planner.latency_model import LatencyModel, Step, latency_file, measured_latency
from nemodiff_trt.runtime.planner.roofline import predicted_latency
from nemodiff_trt.runtime.simulator import (
    AcceptanceProfile,
    Deployment,
    LoopCost,
    TraceRequest,
    poisson_trace,
    read_acceptance,
    read_trace,
    simulate,
    summarize,
)
from nemodiff_trt.runtime.simulator.acceptance import PUBLISHED_TOKENS
from nemodiff_trt.vocabulary import Mode, Precision, Role

LIMITS = Limits(max_batch_size=4, max_seq_len=512, block_length=32, prefill_chunk=64)
CONFIG = full_size_config("nemotron-labs-diffusion-8b")
B200 = predicted_latency("b200", CONFIG, Precision.BF16)
PUBLISHED = AcceptanceProfile.from_means(PUBLISHED_TOKENS)
DEPLOYMENT = Deployment(latency=B200, limits=LIMITS, acceptance={"all": PUBLISHED})


def mixed_trace(count: int) -> list[TraceRequest]:
    modes = (Mode.AR, Mode.SELF_SPECULATION, Mode.AUTO)
    trace = poisson_trace(50.0, count, 100, 20)
    return [
        dataclasses.replace(request, mode=modes[place % 3], output_tokens=1 + place, prompt_tokens=1 + 7 * place)
        for place, request in enumerate(trace)
    ]


class TestSimulation:
    @pytest.mark.parametrize("num_replicas", [1, 3])
    def test_every_request_gets_all_its_tokens_after_it_came(self, num_replicas: int) -> None:
        trace = mixed_trace(40)
        outcomes = simulate(trace, dataclasses.replace(DEPLOYMENT, num_replicas=num_replicas))
        assert [outcome.new_tokens for outcome in outcomes] == [request.output_tokens for request in trace]
        for request, outcome in zip(trace, outcomes, strict=True):
            assert request.arrival_s == outcome.arrival_s < outcome.first_token_s <= outcome.end_s

    def test_a_lone_ar_request_takes_its_steps_and_the_loop(self) -> None:
        cost = LoopCost(run_ms=1.0, row_ms=0.5)
        deployment = dataclasses.replace(DEPLOYMENT, mode=Mode.AR, loop_cost=cost)
        request = TraceRequest(arrival_s=2.0, prompt_tokens=64, output_tokens=3)
        (outcome,) = simulate([request], deployment)
        prefill_ms = B200.ms(Step(Role.PREFILL, 1, 64, 0.0))
        decode_ms = sum(B200.ms(Step(Role.DECODE, 1, 1, history)) for history in (64.0, 65.0))
        # The last chunk of a prompt and the first decoding share a step of the loop, after which a caller hears of both.
        first_ms = prefill_ms + B200.ms(Step(Role.DECODE, 1, 1, 64.0)) + 2 * 1.5
        assert outcome.time_to_first_token_s == pytest.approx(first_ms / 1e3)
        assert outcome.total_s == pytest.approx((prefill_ms + decode_ms + 3 * 1.5) / 1e3)

    def test_seeds(self) -> None:
        deployment = dataclasses.replace(DEPLOYMENT, mode=Mode.SELF_SPECULATION)
        trace = poisson_trace(50.0, 20, 50, 40, seed=1)
        assert simulate(trace, deployment, 5) == simulate(trace, deployment, 5)
        assert simulate(trace, deployment, 5) != simulate(trace, deployment, 6)

    def test_more_replicas_never_lower_the_throughput_of_a_saturated_trace(self) -> None:
        trace = poisson_trace(1e6, 48, 50, 40)
        speeds = [
            summarize(simulate(trace, dataclasses.replace(DEPLOYMENT, num_replicas=count, mode=Mode.AR)))["tokens_per_second"]
            for count in (1, 2, 4)
        ]
        assert speeds[0] < speeds[1] < speeds[2]

    def test_tokens_of_a_cycle_are_those_of_the_category(self) -> None:
        perfect, useless = AcceptanceProfile(np.ones(31)), AcceptanceProfile(np.zeros(31))
        deployment = dataclasses.replace(DEPLOYMENT, mode=Mode.SELF_SPECULATION, acceptance={"easy": perfect, "hard": useless})
        easy, hard = (
            simulate([TraceRequest(arrival_s=0, prompt_tokens=9, output_tokens=97, category=name)], deployment)[0]
            for name in ("easy", "hard")
        )
        # 96 tokens after that of the prompt: three cycles of 32, or 96 of one. The first is told of with the prompt's.
        assert (hard.end_s - hard.first_token_s) / (easy.end_s - easy.first_token_s) == pytest.approx(95 / 2, rel=0.02)

    def test_prices(self) -> None:
        outcomes = simulate(poisson_trace(1e6, 8, 20, 20), DEPLOYMENT)
        paid = summarize(outcomes, num_replicas=2, price_per_hour=3.0)
        assert paid["cost_per_million_tokens"] == pytest.approx(6.0 / 3600 / paid["tokens_per_second"] * 1e6)

    @pytest.mark.parametrize(
        ("request_", "field"),
        [
            (TraceRequest(arrival_s=0, prompt_tokens=600, output_tokens=1), "prompt_tokens"),
            (TraceRequest(arrival_s=0, prompt_tokens=6, output_tokens=1, category="unheard"), "category"),
        ],
    )
    def test_what_cannot_be_served_is_refused(self, request_: TraceRequest, field: str) -> None:
        deployment = dataclasses.replace(
            DEPLOYMENT, acceptance={"easy": PUBLISHED} if field == "category" else {"all": PUBLISHED}
        )
        with pytest.raises(InvalidInputError, match=field):
            simulate([request_], deployment)


class TestAcceptance:
    def test_published_means_come_back(self) -> None:
        assert {length: PUBLISHED.tokens(length) for length in PUBLISHED_TOKENS} == pytest.approx(PUBLISHED_TOKENS)

    def test_draws_follow_a_histogram(self) -> None:
        profile = AcceptanceProfile.from_histogram({0: 50, 1: 25, 3: 25}, 4)
        generator = np.random.default_rng(0)
        drawn = np.bincount([profile.draw(generator, 3) for _ in range(4000)], minlength=4) / 4000
        # Five standard deviations of a share of a half.
        assert drawn == pytest.approx([0.5, 0.25, 0.0, 0.25], abs=0.04)

    def test_impossible_means(self) -> None:
        with pytest.raises(InvalidInputError, match="block length 8"):
            AcceptanceProfile.from_means({8: 8.5})

    def test_files(self, tmp_path: Path) -> None:
        path = tmp_path / "a.json"
        path.write_text(json.dumps({"code": {"block_length": 4, "accepted": {"3": 2}}}))
        assert read_acceptance(path)["code"].tokens(4) == 4
        path.write_text("[]")
        with pytest.raises(InvalidInputError, match=r"a\.json"):
            read_acceptance(path)


GOOD = '{"arrival_s": 1, "prompt_tokens": 5, "output_tokens": 6}\n'


class TestTrace:
    def test_requests_in_order_of_arrival(self, tmp_path: Path) -> None:
        path = tmp_path / "t.jsonl"
        path.write_text(GOOD + '\n{"arrival_s": 0.5, "prompt_tokens": 5, "output_tokens": 6, "mode": "ar", "category": "c"}\n')
        first, second = read_trace(path)
        assert (first.arrival_s, first.mode, first.category, second.mode) == (0.5, Mode.AR, "c", None)

    @pytest.mark.parametrize(
        "line",
        [
            "{",
            "[]",
            '{"arrival_s": 1}',
            GOOD.replace("5", "0"),
            GOOD.replace("1,", "-1,"),
            GOOD.replace("1,", "NaN,"),
            GOOD.replace("6}", '6, "mode": "quadratic"}'),
            GOOD.replace("6}", '6, "temperature": 1}'),
        ],
    )
    def test_a_bad_line_is_refused_naming_file_and_line(self, tmp_path: Path, line: str) -> None:
        path = tmp_path / "t.jsonl"
        path.write_text(GOOD + line)
        with pytest.raises(InvalidInputError, match=r"t\.jsonl:2"):
            read_trace(path)


class TestCommand:
    def run(self, *arguments: str) -> int:
        return run_app(build_app(), "nemodiff", ["simulate", *arguments])

    def test_json_says_that_step_times_are_predicted(self, capsys: pytest.CaptureFixture[str]) -> None:
        sizes = ("--rate", "50", "--num-requests", "20", "--output-tokens", "20")
        assert self.run("--device", "dgx-spark", "--model", "3b", "--precision", "nvfp4", *sizes, "--json") == 0
        printed = json.loads(capsys.readouterr().out)
        assert printed["is_prediction"]
        assert printed["new_tokens"] == 400

    @pytest.mark.parametrize(
        ("arguments", "named"),
        [
            (("--rate", "1"), "latency"),
            (("--device", "b200"), "trace"),
            (("--device", "b200", "--rate", "1", "--precision", "fp2"), "precision"),
            (("--device", "b200", "--rate", "1", "--mode", "diffusion"), "mode"),
            (("--device", "b200", "--rate", "1", "--model", "9b"), "9b"),
        ],
    )
    def test_bad_input(self, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], named: str) -> None:
        assert self.run(*arguments) == 2
        assert named in capsys.readouterr().err


class TestPrediction:
    def test_bf16_is_the_weights_over_the_bandwidth_and_labelled(self) -> None:
        assert B200.is_prediction
        assert "predicted" in B200.device
        # 17 GB at 80 % of 8 TB/s, and 340 launches of 2 us; the adapter and the embedding are not read.
        assert B200.ms(Step(Role.DECODE, 1, 1, 0.0)) == pytest.approx(15.96 / 6.4 + 0.68, rel=0.02)

    def test_fewer_bytes_and_smaller_models_are_faster(self) -> None:
        step = Step(Role.VERIFY, 8, 32, 500.0)
        by_precision = [
            predicted_latency("b200", CONFIG, precision).ms(step)
            for precision in (Precision.BF16, Precision.FP8, Precision.NVFP4)
        ]
        assert by_precision == sorted(by_precision, reverse=True)
        sizes = [full_size_config(f"nemotron-labs-diffusion-{size}") for size in ("3b", "8b", "14b")]
        by_size = [predicted_latency("dgx-spark", config, Precision.FP8).ms(step) for config in sizes]
        assert by_size == sorted(by_size)

    def test_unknown_devices_and_formats(self) -> None:
        with pytest.raises(InvalidInputError, match="rtx-5090"):
            predicted_latency("b300x", CONFIG, Precision.BF16)
        with pytest.raises(InvalidInputError, match="precision"):
            predicted_latency("h100", CONFIG, Precision.NVFP4)

    def test_mode_auto_does_not_choose_by_a_prediction(self, tmp_path: Path) -> None:
        bundle = tmp_path / "b"
        assert measured_latency(bundle) is None
        measured = LatencyModel("here", False, B200.roles)
        latency_file(bundle).write_bytes(measured.to_bytes())
        assert measured_latency(bundle) == measured
        latency_file(bundle).write_bytes(B200.to_bytes())
        with pytest.raises(BundleError, match="prediction for B200"):
            measured_latency(bundle)

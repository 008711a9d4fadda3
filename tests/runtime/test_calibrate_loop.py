"""How long cycles take in a loop, against their steps."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nemodiff_trt.bundle import Bundle
from nemodiff_trt.command_line import run_app
from nemodiff_trt.contract import Limits
from nemodiff_trt.errors import BundleError
from nemodiff_trt.runtime.cli.app import build_app
from nemodiff_trt.runtime.planner import Choice, LatencyModel, Policy, Step
from nemodiff_trt.runtime.planner.calibrate_loop import measure_loop
from nemodiff_trt.runtime.planner.latency_model import latency_file, measured_latency
from nemodiff_trt.runtime.session_eager import EagerSession
from nemodiff_trt.runtime.session_onnxruntime import OnnxRuntimeSession
from nemodiff_trt.tokenizer import Tokenizer
from nemodiff_trt.vocabulary import Role
from support.bundles import copy_bundle
from support.checkpoints import random_decoder, tiny_config
from support.planning import device, lengths, planned

# Milliseconds that every engine run takes beyond what is predicted.
HOST_MS = 0.5


class ClockedSession:
    """Runs take what is predicted for them and `HOST_MS`, on a clock of their own, and every so often far more."""

    def __init__(self, session: Any, latency: LatencyModel, interrupted: int) -> None:
        self._session, self._latency, self._interrupted = session, latency, interrupted
        self.now_s, self.num_runs = 0.0, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def run(self, role: Role, input_ids: np.ndarray, cache: Any, *arguments: Any) -> Any:
        self.num_runs += 1
        if role is not Role.PREFILL:
            ms = self._latency.ms(Step.of_run(role, input_ids, cache.length)) + HOST_MS
            self.now_s += 1e-3 * ms * (20.0 if self.num_runs % self._interrupted == 0 else 1.0)
        return self._session.run(role, input_ids, cache, *arguments)


class WithoutDrafts(EagerSession):
    """As a bundle of mode `ar` has it."""

    @property
    def roles(self) -> frozenset[Role]:
        return frozenset({Role.PREFILL, Role.DECODE})


class TestMeasureLoop:
    def test_what_the_host_adds_to_steps(self, tiny_bundle: Bundle) -> None:
        latency = device(1.0, 0.01)
        session = ClockedSession(OnnxRuntimeSession.open(tiny_bundle, 1), latency, interrupted=9)
        found = measure_loop(
            session, Tokenizer.from_dir(tiny_bundle.tokenizer_dir), latency, num_rounds=3, clock=lambda: session.now_s
        )
        limits = session.limits
        assert set(found) == {1, *(length for length in (4, 8, 16, 32) if length <= limits.block_length)}
        for length, by_rows in found.items():
            assert set(by_rows) == {1 << power for power in range(limits.max_batch_size.bit_length())} | {limits.max_batch_size}
            for rows, ratio in by_rows.items():
                step_ms = 1.0 + 0.01 * rows * length
                # As often as not both runs of a cycle are as predicted.
                assert ratio == pytest.approx((step_ms + HOST_MS) / step_ms)

    def test_a_bundle_without_drafts_has_nothing_to_choose(self, tiny_bundle: Bundle) -> None:
        limits = Limits(max_batch_size=2, max_seq_len=24, block_length=8, prefill_chunk=8)
        session = WithoutDrafts(random_decoder(tiny_config(hidden_size=16, head_dim=8), limits.cache_capacity), limits)
        assert measure_loop(session, Tokenizer.from_dir(tiny_bundle.tokenizer_dir), device(1.0, 0.01)) == {}


class TestLoopTimes:
    def test_the_first_choice_goes_by_them(self) -> None:
        # By their steps blocks of 8 with four tokens are worth less than decoding without drafts, in the loop more.
        steps = device(1.0, 0.25)
        for loop, chosen in ((steps, 1), (replace(steps, loop={1: {1: 1.5}, 8: {1: 1.1}}), 8)):
            policy = Policy(loop, [8], 32, 1)
            requests = planned(policy, 3)
            policy.decide(requests, 100.0)
            assert lengths(requests) == [chosen]

    def test_between_measured_rows(self) -> None:
        latency = replace(device(1.0, 0.0), loop={1: {1: 1.2, 4: 1.6, 16: 1.0}})
        policy = Policy(latency, [8], 32, 32)
        found = [policy.cycle_ms(Choice(1), rows, 100.0) for rows in (1, 2, 4, 8, 16, 32)]
        assert found == pytest.approx([1.2, 1.4, 1.6, 1.3, 1.0, 1.0])
        assert policy.cycle_ms(Choice(8), 2, 100.0) == pytest.approx(2.0)


class TestFile:
    def test_a_factor_that_is_none(self, tmp_path: Path) -> None:
        path = tmp_path / "b.json"
        latency = replace(device(1.0, 0.0), loop={1: {1: 1.25}, 8: {1: 1.0, 2: 1.1}})
        path.write_bytes(latency.to_bytes())
        assert LatencyModel.read(path) == latency
        path.write_bytes(latency.to_bytes().replace(b"1.25", b"-1.25"))
        with pytest.raises(BundleError, match="a factor of the loop is not a positive number"):
            LatencyModel.read(path)

    def test_the_command_writes_them(self, tiny_bundle_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        bundle = copy_bundle(tiny_bundle_dir, tmp_path / "b")
        assert run_app(build_app(), "nemodiff", ["calibrate", "--bundle", str(bundle), "--num-repeats", "1", "--json"]) == 0
        printed = json.loads(capsys.readouterr().out)
        latency = measured_latency(bundle)
        assert 0 <= printed["other_work"] <= 1
        assert printed["file"] == str(latency_file(bundle))
        assert latency is not None
        assert set(latency.loop) == {
            1,
            *Policy.for_session(OnnxRuntimeSession.open(Bundle.open(bundle), 1), latency).block_lengths,
        }
        assert printed["num_cycles"] == sum(map(len, latency.loop.values()))
        assert all(ratio > 0 for own in latency.loop.values() for ratio in own.values())

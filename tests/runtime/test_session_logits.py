"""Bundles built with sampling: logits of their sessions equal the eager ones, and answers are drawn from them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nemodiff_trt.bundle import Bundle
from nemodiff_trt.command_line import run_app
from nemodiff_trt.runtime.bound_cache import BoundCache
from nemodiff_trt.runtime.cli.app import build_app
from nemodiff_trt.runtime.open_session import open_session
from nemodiff_trt.runtime.options import GenerationOptions
from nemodiff_trt.runtime.recent_steps import RecentSteps
from nemodiff_trt.runtime.sampling import SamplingOptions
from nemodiff_trt.runtime.session_eager import EagerSession
from nemodiff_trt.runtime.tri_mode_lm import TriModeLM
from nemodiff_trt.vocabulary import Mode, Role, Target
from support.bundles import build_bundle
from support.gpu_bundles import make_gpu_bundle
from support.gpu_machine import Machine, prefilled, random_ids

# fp32 sums of at most 96 products, in another order; logits are of the order of one.
LOGIT_ERROR = 2e-5
STEPS = [(Role.DECODE, 1), (Role.VERIFY, 8), (Role.VERIFY, 3), (Role.DRAFT, 8), (Role.DENOISE, 5)]
SMALL_STEPS = [(Role.DECODE, 1)]


@pytest.fixture(scope="module")
def sampling_bundle_dir(tiny_checkpoint_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_bundle(tiny_checkpoint_dir, tmp_path_factory.mktemp("logits") / "bundle", sampling=True)


def assert_equal_logits(session: Any, oracle: EagerSession, steps: list[tuple[Role, int]]) -> None:
    assert session.has_logits
    assert oracle.has_logits
    for batch in (1, 3):
        caches = [prefilled(each, batch) for each in (session, oracle)]
        for seed, (role, step) in enumerate([*steps, *steps]):
            ids = random_ids(batch, step, seed)
            ours, right = (each.run(role, ids, cache) for each, cache in zip((session, oracle), caches, strict=True))
            assert_logits(ours, right, (batch, step, session.model.vocab_size))
        for length in (16, 5):
            ids, last = random_ids(batch, length, length), np.full(batch, length - 2)
            outputs = [each.run(Role.PREFILL, ids, each.create_cache(batch), last) for each in (session, oracle)]
            assert_logits(outputs[0], outputs[1], (batch, 1, session.model.vocab_size))


def assert_logits(ours: Any, right: Any, shape: tuple[int, int, int]) -> None:
    assert (ours.logits.shape, ours.logits.dtype) == (shape, np.float32)
    np.testing.assert_allclose(ours.logits, right.logits, rtol=0, atol=LOGIT_ERROR)
    mask = right.logits.copy()
    mask[..., 100] = -np.inf
    np.testing.assert_array_equal(ours.token, mask.argmax(-1))


def test_onnxruntime(sampling_bundle_dir: Path) -> None:
    bundle = Bundle.open(sampling_bundle_dir)
    session = open_session(bundle, 1)
    assert_equal_logits(session, EagerSession.from_bundle(bundle), STEPS)
    cache = session.create_cache(2)
    first, again = (session.run(Role.VERIFY, random_ids(2, 8), cache).logits for _ in range(2))
    assert first is again, "one buffer a shape"


def test_tensorrt(sampling_bundle_dir: Path, tmp_path: Path) -> None:
    bundle = Bundle.open(make_gpu_bundle(sampling_bundle_dir, tmp_path / "gpu"))
    assert_equal_logits(Machine(bundle).open(), EagerSession.from_bundle(bundle), STEPS)


def test_sampled_answers(sampling_bundle_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = TriModeLM.from_bundle(sampling_bundle_dir, num_threads=1)
    choice = SamplingOptions(temperature=0.9, top_p=0.95, repetition_penalty=1.2, seed=11, logprobs=2)
    wish = GenerationOptions(mode="ar", max_new_tokens=24, ignore_eos=True, sampling=choice)  # type: ignore[arg-type]
    prompts = ["the and", "x" * 20]
    plain = model.generate(prompts, wish)
    fast = model.generate(prompts, wish, mode="self_speculation")
    assert [result.token_ids for result in fast] == [result.token_ids for result in plain]
    for one, other in zip(plain, fast, strict=True):
        pairs = zip(one.logprobs, other.logprobs, strict=True)
        assert all(abs(mine.logprob - its.logprob) < LOGIT_ERROR and mine.token == its.token for mine, its in pairs)
        assert [entry.token for entry in one.logprobs] == list(one.token_ids)
    assert model.generate(prompts, wish, seed=12)[0].token_ids != plain[0].token_ids
    request = ["generate", "--bundle", str(sampling_bundle_dir), "--prompt", prompts[0], "--mode", "ar"]
    limits = ["--no-chat", "--max-new-tokens", "24", "--ignore-eos", "--num-threads", "1", "--json"]
    sampling = ["--temperature", "0.9", "--top-p", "0.95", "--repetition-penalty", "1.2", "--seed", "11", "--logprobs", "2"]
    assert run_app(build_app(), "nemodiff", [*request, *limits, *sampling]) == 0
    content = json.loads(capsys.readouterr().out)
    assert tuple(content["token_ids"]) == plain[0].token_ids
    assert [entry["token"] for entry in content["logprobs"]] == content["token_ids"]
    assert {len(entry["top"]) for entry in content["logprobs"]} == {2}


@pytest.mark.slow
def test_inductor(tiny_checkpoint_dir: Path, tmp_path: Path) -> None:
    folder = build_bundle(tiny_checkpoint_dir, tmp_path / "bundle", target=Target.INDUCTOR, modes=(Mode.AR,), sampling=True)
    bundle = Bundle.open(folder)
    assert_equal_logits(open_session(bundle, 1), EagerSession.from_bundle(bundle), SMALL_STEPS)


def test_a_bundle_without_sampling_has_none(tiny_bundle: Bundle) -> None:
    session = open_session(tiny_bundle, 1)
    assert not session.has_logits
    assert session.run(Role.DECODE, random_ids(1, 1), session.create_cache(1)).logits is None


def test_one_token_and_a_block_decide_from_the_same_bits(sampling_bundle_dir: Path) -> None:
    """Losslessness does not hang on near ties: the causal logits of a token are those of `ar` bit for bit."""
    session = open_session(Bundle.open(sampling_bundle_dir))
    for seed in range(8):
        cache = prefilled(session, 1)
        ids = random_ids(1, 8, seed)
        block = session.run(Role.VERIFY, ids, cache).logits
        assert block is not None
        wanted = block.copy()
        for offset in range(8):
            alone = session.run(Role.DECODE, ids[:, offset : offset + 1], cache).logits
            assert alone is not None
            assert alone.shape == (1, 1, session.model.vocab_size)
            np.testing.assert_array_equal(alone[0, 0], wanted[0, offset])
            cache.length += 1


def test_views_of_a_cache_share_what_is_kept(sampling_bundle_dir: Path) -> None:
    session = open_session(Bundle.open(sampling_bundle_dir), 1)
    cache = session.create_cache(4)
    assert isinstance(cache, BoundCache)
    cache.bindings = RecentSteps(3)
    wanted = {}
    for _ in range(2):
        for begin in range(4):
            rows = cache.rows(begin, begin + 1)
            for step in (1, 2, 5):
                output = session.run(Role.VERIFY, random_ids(1, step, begin), rows)
                assert output.logits is not None
                logits = output.logits.copy()
                np.testing.assert_array_equal(logits, wanted.setdefault((begin, step), logits))
                assert len(cache.bindings) <= 3
    assert {each.first_row for each in cache.bindings} == {3}

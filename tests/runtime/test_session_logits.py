"""Sessions of bundles built with sampling return the logits they decided from, equal to the eager ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nemodiff_trt.bundle import Bundle
from nemodiff_trt.runtime.open_session import open_session
from nemodiff_trt.runtime.session_eager import EagerSession
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


@pytest.mark.slow
def test_inductor(tiny_checkpoint_dir: Path, tmp_path: Path) -> None:
    folder = build_bundle(tiny_checkpoint_dir, tmp_path / "bundle", target=Target.INDUCTOR, modes=(Mode.AR,), sampling=True)
    bundle = Bundle.open(folder)
    assert_equal_logits(open_session(bundle, 1), EagerSession.from_bundle(bundle), SMALL_STEPS)


def test_a_bundle_without_sampling_has_none(tiny_bundle: Bundle) -> None:
    session = open_session(tiny_bundle, 1)
    assert not session.has_logits
    assert session.run(Role.DECODE, random_ids(1, 1), session.create_cache(1)).logits is None

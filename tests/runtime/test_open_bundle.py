"""A built bundle, opened as engines and as the eager oracle."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from nemodiff_trt import TriModeLM
from nemodiff_trt.build_engines.compile import compile_bundle
from nemodiff_trt.bundle import Bundle
from nemodiff_trt.checkpoint import Checkpoint
from nemodiff_trt.errors import BundleError, InvalidInputError
from nemodiff_trt.options import AdapterForm, CompileOptions
from nemodiff_trt.runtime.open_session import open_session
from nemodiff_trt.runtime.session_eager import EagerSession
from nemodiff_trt.tokenizer import Tokenizer
from nemodiff_trt.vocabulary import Mode, Role, Target

PROMPTS = ["the and", "€ the", "x" * 40, "", "<think>"]


@pytest.fixture(scope="module", params=list(AdapterForm))
def bundle(request: pytest.FixtureRequest, tiny_checkpoint_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    options = CompileOptions(
        checkpoint=str(tiny_checkpoint_dir),
        target=Target.ONNXRUNTIME,
        output=tmp_path_factory.mktemp("bundles") / request.param,
        max_batch_size=3,
        max_seq_len=96,
        block_length=8,
        prefill_chunk=16,
        draft_adapter=request.param,
    )
    return compile_bundle(options)


def test_oracle_has_the_weights_of_the_checkpoint(bundle: Bundle, tiny_checkpoint: Checkpoint) -> None:
    capacity = bundle.manifest.limits.cache_capacity
    has_adapter = bundle.manifest.adapter is not None
    original = EagerSession(tiny_checkpoint.load_decoder(capacity, torch.float32, has_adapter), bundle.manifest.limits)
    rebuilt = EagerSession.from_bundle(bundle)
    ids = np.array([[1, 130, 140, 150], [1, 131, 100, 100]])
    for role in (Role.VERIFY, Role.DENOISE, Role.DRAFT):
        expected, given = (session.run(role, ids, session.create_cache(2)) for session in (original, rebuilt))
        np.testing.assert_array_equal(given.token, expected.token)
        np.testing.assert_allclose(given.confidence, expected.confidence, rtol=1e-4)


@pytest.mark.parametrize("mode", [Mode.AR, Mode.DIFFUSION, Mode.SELF_SPECULATION])
def test_engines_answer_like_the_oracle(bundle: Bundle, mode: Mode) -> None:
    engines = TriModeLM.from_bundle(bundle.path)
    oracle = TriModeLM(EagerSession.from_bundle(bundle), Tokenizer.from_dir(bundle.tokenizer_dir))
    results = [lm.generate(PROMPTS, mode=mode, max_new_tokens=24, ignore_eos=True) for lm in (engines, oracle)]
    assert [r.token_ids for r in results[0]] == [r.token_ids for r in results[1]]
    assert [r.stats.forward_passes for r in results[0]] == [r.stats.forward_passes for r in results[1]]


def test_engines_lose_nothing_to_speculation(bundle: Bundle) -> None:
    lm = TriModeLM.from_bundle(bundle.path)
    plain = lm.generate(PROMPTS, mode="ar", max_new_tokens=90)
    for block_length in (2, 5, 8):
        speculative = lm.generate(PROMPTS, mode="self_speculation", max_new_tokens=90, block_length=block_length)
        assert [(r.token_ids, r.text) for r in speculative] == [(r.token_ids, r.text) for r in plain]


@pytest.mark.parametrize("target", [Target.TENSORRT_RTX, Target.TENSORRT])
def test_gpu_targets_have_a_session_of_their_own(bundle: Bundle, target: Target) -> None:
    other = dataclasses.replace(bundle, manifest=dataclasses.replace(bundle.manifest, target=target))
    with pytest.raises(BundleError, match="its manifest names no GPU"):
        open_session(other)
    with pytest.raises(InvalidInputError, match="num_threads: got 2, allowed: nothing for target tensorrt"):
        open_session(other, num_threads=2)

"""TensorRT-RTX engines on a GPU: equal to the eager decoder, lossless, within the predicted memory, faster with graphs.

Needs a GPU that TensorRT-RTX compiles for, a CUDA build of torch and the extra `rtx`; run with -m gpu -s to see the times.
"""

from __future__ import annotations

import dataclasses
import functools
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nemodiff_trt.build_engines.compile import compile_bundle
from nemodiff_trt.bundle import Bundle, source_tensors
from nemodiff_trt.errors import BundleError
from nemodiff_trt.model import TriModeDecoder, assemble_decoder
from nemodiff_trt.options import CompileOptions
from nemodiff_trt.runtime.answer import GenerationResult
from nemodiff_trt.runtime.parity import compare_sessions
from nemodiff_trt.runtime.session_eager import EagerSession
from nemodiff_trt.runtime.session_tensorrt import TensorRTSession
from nemodiff_trt.runtime.tri_mode_lm import TriModeLM
from nemodiff_trt.tokenizer import Tokenizer
from nemodiff_trt.vocabulary import Precision, Role, Target

pytestmark = pytest.mark.gpu

TEXT = "Anna has 12 apples and buys 30 more. How many apples does she have? Count from 3 to 12."
PROMPTS = (TEXT, "Count from 3 to 12.", "Repeat this text exactly: the quick brown fox", "x")
# bfloat16 carries 8 bits; a few layers of rounding leave about 5. Two tokens closer than that, relative to the largest logit,
# may change places between a step of one token and a step of a block, which other kernels compute.
MARGIN = 2**-5
# Torch rounds every allocation up to this.
BLOCK_BYTES = 512
STEPS = {Role.PREFILL: 64, Role.DECODE: 1, Role.VERIFY: 32, Role.DENOISE: 32, Role.DRAFT: 32}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    major, minor = torch.cuda.get_device_capability()
    options = CompileOptions(
        checkpoint="nemodiff-tiny",
        target=Target.TENSORRT_RTX,
        precision=Precision.BF16,
        sm=(10 * major + minor,),
        output=tmp_path_factory.mktemp("gpu") / "bundle",
        max_batch_size=4,
        max_seq_len=512,
        block_length=32,
        prefill_chunk=128,
    )
    return compile_bundle(options)


@pytest.fixture(scope="module")
def session(bundle: Bundle) -> TensorRTSession:
    return TensorRTSession.open(bundle)


@pytest.fixture(scope="module")
def launching(bundle: Bundle) -> TensorRTSession:
    """Without CUDA graphs."""
    return TensorRTSession.open(bundle, cuda_graphs=False)


@pytest.fixture(scope="module")
def oracle(bundle: Bundle) -> EagerSession:
    return EagerSession.from_bundle(bundle)


def random_ids(batch: int, step: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(130, 1000, (batch, step))


def prefilled(session: Any, batch: int, length: int = 40) -> Any:
    cache = session.create_cache(batch)
    session.run(Role.PREFILL, random_ids(batch, length), cache, np.full(batch, length - 1))
    cache.length[:] = length - 2 * np.arange(batch)
    return cache


def test_every_role_equals_eager(bundle: Bundle, session: TensorRTSession, oracle: EagerSession) -> None:
    token_ids = Tokenizer.from_dir(bundle.tokenizer_dir).encode(TEXT)
    found = compare_sessions(session, oracle, token_ids)
    print(*(f"{role}: {dataclasses.asdict(parity)}" for role, parity in found.items()), sep="\n")
    assert found.keys() == session.roles
    assert all(parity.is_within(bundle.manifest.precision) for parity in found.values())


@pytest.mark.parametrize("batch", [1, 2, 3, 4])
@pytest.mark.parametrize("role", [Role.VERIFY, Role.DENOISE, Role.DRAFT])
def test_every_shape_runs_and_replays(session: TensorRTSession, role: Role, batch: int) -> None:
    cache = prefilled(session, batch)
    for step in (1, 2, 7, 31, 32):
        first = session.run(role, random_ids(batch, step), cache)
        token, confidence = first.token.copy(), first.confidence.copy()
        session.run(role, random_ids(batch, step, seed=1), cache)
        again = session.run(role, random_ids(batch, step), cache)
        np.testing.assert_array_equal(again.token, token)
        np.testing.assert_array_equal(again.confidence, confidence)


@pytest.mark.parametrize("role", list(STEPS))
def test_graphs_change_no_bit(session: TensorRTSession, launching: TensorRTSession, role: Role) -> None:
    caches = [prefilled(each, 3) for each in (session, launching)]
    for seed in range(3):
        ids, last = random_ids(3, STEPS[role], seed), np.full(3, STEPS[role] - 1)
        outputs = [each.run(role, ids, cache, last) for each, cache in zip((session, launching), caches, strict=True)]
        np.testing.assert_array_equal(outputs[0].token, outputs[1].token)
        np.testing.assert_array_equal(outputs[0].confidence, outputs[1].confidence)
    for mine, other in zip([*caches[0].keys, *caches[0].values], [*caches[1].keys, *caches[1].values], strict=True):
        assert torch.equal(mine, other)


def test_speculation_equals_ar(bundle: Bundle, session: TensorRTSession) -> None:
    lm = TriModeLM(session, Tokenizer.from_dir(bundle.tokenizer_dir))
    plain, fast = (lm.generate(PROMPTS, mode=mode, max_new_tokens=128) for mode in ("ar", "self_speculation"))
    state = {name: tensor.to(torch.float32) for name, tensor in source_tensors(bundle).items()}
    adapter = bundle.manifest.adapter
    decoder = assemble_decoder(bundle.manifest.model, state, 1024, (adapter.rank, adapter.scale) if adapter else None)
    margins = [divergence(lm, decoder, *pair) for pair in zip(PROMPTS, plain, fast, strict=True)]
    assert all(margin < MARGIN for margin in margins)


def divergence(lm: TriModeLM, decoder: TriModeDecoder, prompt: str, plain: GenerationResult, fast: GenerationResult) -> float:
    """Distance of the two best logits where the answers part, relative to the largest; 0 where they do not."""
    pairs = list(zip(plain.token_ids, fast.token_ids, strict=False))
    first = next((index for index, pair in enumerate(pairs) if pair[0] != pair[1]), None)
    if first is None:
        assert plain.token_ids == fast.token_ids
        return 0.0
    ids = torch.tensor([[*lm.tokenizer.encode(prompt), *plain.token_ids[:first]]])
    config = decoder.config
    empty = [torch.zeros(1, config.num_key_value_heads, 1024, config.head_dim) for _ in range(config.num_hidden_layers)]
    logits = decoder(ids, torch.zeros(1, dtype=torch.int64), empty, empty, True, False)[0][0, -1]
    best = logits.topk(2)
    margin = float((best.values[0] - best.values[1]) / logits.abs().max())
    print(f"{prompt!r}: token {first}, ar {pairs[first][0]}, speculation {pairs[first][1]}, relative margin {margin:.2e}")
    return margin


def test_memory_is_within_the_prediction(bundle: Bundle) -> None:
    before = torch.cuda.memory_allocated()
    session = TensorRTSession.open(bundle)
    cache = prefilled(session, 4)
    predicted = session.memory(4)
    taken = torch.cuda.memory_allocated() - before
    print(f"taken {taken}, predicted {predicted}")
    assert taken <= predicted.total - predicted.engines + 6 * BLOCK_BYTES
    run_all(session, cache)
    free = torch.cuda.mem_get_info()[0]
    for _ in range(20):
        run_all(session, cache)
    assert torch.cuda.memory_allocated() - before == taken
    assert torch.cuda.mem_get_info()[0] == free


def run_all(session: TensorRTSession, cache: Any) -> None:
    for role, step in STEPS.items():
        session.run(role, random_ids(cache.batch_size, step), cache, np.zeros(cache.batch_size, np.int64))


@pytest.mark.parametrize("role", list(STEPS))
def test_graphs_are_no_slower(session: TensorRTSession, launching: TensorRTSession, role: Role) -> None:
    medians = []
    for each in (session, launching):
        cache, ids, last = prefilled(each, 1), random_ids(1, STEPS[role]), np.array([0])
        medians.append(median_ms(functools.partial(each.run, role, ids, cache, last)))
    print(f"{role}: {medians[0]:.3f} ms with graphs, {medians[1]:.3f} ms without")
    assert medians[0] <= 1.1 * medians[1]


def median_ms(step: Callable[[], object], repeats: int = 50) -> float:
    times = []
    for _ in range(repeats + 5):
        begin_s = time.perf_counter()
        step()
        times.append(1000 * (time.perf_counter() - begin_s))
    return statistics.median(times[5:])


def test_compiled_kernels_are_kept(bundle: Bundle, tmp_path: Path) -> None:
    kernels, times = tmp_path / "kernels", []
    for _ in range(2):
        begin_s = time.perf_counter()
        prefilled(TensorRTSession.open(bundle, kernels=kernels), 1)
        times.append(time.perf_counter() - begin_s)
    print(f"first start {times[0]:.2f} s, second {times[1]:.2f} s, file {kernels.stat().st_size} bytes")
    assert times[1] < times[0]


def test_a_bundle_for_another_gpu_is_refused(bundle: Bundle) -> None:
    other = dataclasses.replace(bundle, manifest=dataclasses.replace(bundle.manifest, sms=(75,)))
    with pytest.raises(BundleError, match=r"this GPU is a .*; its tensorrt-rtx engines were built for SM75 \(RTX 20 series\)"):
        TensorRTSession.open(other)

"""ONNX Runtime sessions: equal to the eager session in every role, in place, without allocation, one copy of the weights."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from nemodiff_trt.bundle import Bundle
from nemodiff_trt.errors import BundleError, InvalidInputError
from nemodiff_trt.runtime.bound_cache import BoundCache
from nemodiff_trt.runtime.recent_steps import StepShape
from nemodiff_trt.runtime.session_eager import EagerSession
from nemodiff_trt.runtime.session_onnxruntime import OnnxRuntimeSession
from nemodiff_trt.vocabulary import Mode, Role, Target
from support.bundles import build_bundle, copy_bundle, rewrite_manifest, swap_engine
from support.checkpoints import random_checkpoint, tiny_config

# fp32 sums of at most 96 products, in another order; keys and values are of the order of one.
CONFIDENCE_ERROR = 1e-5
CACHE_ERROR = 2e-5
BIDIRECTIONAL = (Role.DENOISE, Role.DRAFT)


@pytest.fixture(scope="module")
def session(tiny_bundle: Bundle) -> OnnxRuntimeSession:
    return OnnxRuntimeSession.open(tiny_bundle, num_threads=1)


@pytest.fixture(scope="module")
def oracle(tiny_bundle: Bundle) -> EagerSession:
    return EagerSession.from_bundle(tiny_bundle)


def random_ids(batch: int, step: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(101, 400, (batch, step))


def prefilled(session: Any, batch: int, length: int = 12) -> Any:
    """Cache with `batch` rows of different length, filled with random tokens."""
    cache = session.create_cache(batch)
    session.run(Role.PREFILL, random_ids(batch, length), cache, np.full(batch, length - 1))
    cache.length[:] = length - 2 * np.arange(batch)
    return cache


class TestEqualsEager:
    @pytest.mark.parametrize("batch", [1, 3])
    @pytest.mark.parametrize(
        ("role", "step"),
        [(Role.DECODE, 1), *((role, step) for role in (Role.VERIFY, Role.DENOISE, Role.DRAFT) for step in (2, 5, 8))],
    )
    def test_role(self, session: OnnxRuntimeSession, oracle: EagerSession, role: Role, step: int, batch: int) -> None:
        caches = [prefilled(each, batch) for each in (session, oracle)]
        ids = random_ids(batch, step, seed=1)
        if role in BIDIRECTIONAL:
            ids[:, 1:] = session.model.mask_token_id
        ours, right = (each.run(role, ids, cache) for each, cache in zip((session, oracle), caches, strict=True))
        np.testing.assert_array_equal(ours.token, right.token)
        np.testing.assert_allclose(ours.confidence, right.confidence, rtol=0, atol=CONFIDENCE_ERROR)
        assert_caches_equal(caches[0], caches[1], step)

    @pytest.mark.parametrize("lengths", [(16,), (3, 16, 7)])
    def test_prefill_reads_the_last_token_of_each_row(
        self, session: OnnxRuntimeSession, oracle: EagerSession, lengths: tuple[int, ...]
    ) -> None:
        ids, last = random_ids(len(lengths), max(lengths)), np.array(lengths) - 1
        outputs = [each.run(Role.PREFILL, ids, each.create_cache(len(lengths)), last) for each in (session, oracle)]
        assert outputs[0].token.shape == (len(lengths), 1)
        np.testing.assert_array_equal(outputs[0].token, outputs[1].token)
        np.testing.assert_allclose(outputs[0].confidence, outputs[1].confidence, rtol=0, atol=CONFIDENCE_ERROR)

    def test_draft_differs_from_denoise_by_the_adapter(self, session: OnnxRuntimeSession) -> None:
        ids = random_ids(1, 8)
        outputs = [session.run(role, ids, prefilled(session, 1)).confidence.copy() for role in BIDIRECTIONAL]
        assert np.abs(outputs[0] - outputs[1]).max() > 100 * CONFIDENCE_ERROR

    def test_half_precision(self, tiny_checkpoint_dir: Path, tmp_path: Path) -> None:
        bundle = Bundle.open(build_bundle(tiny_checkpoint_dir, tmp_path / "half", precision="fp16", modes=(Mode.AR,)))
        half, oracle = OnnxRuntimeSession.open(bundle, num_threads=1), EagerSession.from_bundle(bundle)
        ids, last = random_ids(2, 12), np.array([11, 8])
        caches = [each.create_cache(2) for each in (half, oracle)]
        outputs = [each.run(Role.PREFILL, ids, cache, last) for each, cache in zip((half, oracle), caches, strict=True)]
        assert caches[0].keys[0].dtype == np.float16
        # Eleven bits and two layers of roundings: five times the spacing of fp16 at one.
        np.testing.assert_allclose(outputs[0].confidence, outputs[1].confidence, rtol=0, atol=5 * 2**-10)


def assert_caches_equal(ours: BoundCache, right: Any, step: int) -> None:
    for mine, oracle in zip([*ours.keys, *ours.values], [*right.keys, *right.values], strict=True):
        for row, length in enumerate(ours.length):
            wanted = oracle[row, :, : length + step].numpy()
            np.testing.assert_allclose(mine[row, :, : length + step], wanted, rtol=0, atol=CACHE_ERROR)


class TestBuffers:
    def test_the_cache_is_updated_in_place_and_nowhere_else(self, session: OnnxRuntimeSession) -> None:
        cache = prefilled(session, 2)
        before = [(id(buffer), buffer.copy()) for buffer in (*cache.keys, *cache.values)]
        session.run(Role.VERIFY, random_ids(2, 4, seed=2), cache)
        for (identity, old), buffer in zip(before, (*cache.keys, *cache.values), strict=True):
            assert id(buffer) == identity
            for row, length in enumerate(cache.length):
                written = np.zeros(cache.capacity, bool)
                written[length : length + 4] = True
                np.testing.assert_array_equal(buffer[row][:, ~written], old[row][:, ~written])
                assert (buffer[row][:, written] != old[row][:, written]).any(axis=-1).all()

    def test_the_length_is_not_changed(self, session: OnnxRuntimeSession) -> None:
        cache = prefilled(session, 2)
        before = cache.length.copy()
        session.run(Role.DRAFT, random_ids(2, 8), cache)
        np.testing.assert_array_equal(cache.length, before)

    def test_a_step_allocates_and_binds_nothing(self, session: OnnxRuntimeSession, monkeypatch: pytest.MonkeyPatch) -> None:
        cache = prefilled(session, 2)
        steps = {(Role.DECODE, 1), (Role.DRAFT, 8), (Role.VERIFY, 8), (Role.VERIFY, 4)}
        first = {key: session.run(key[0], random_ids(2, key[1]), cache) for key in steps}
        arrays = {key: (id(output.token), id(output.confidence)) for key, output in first.items()}
        num_bindings = len(cache.bindings)

        def refuse(*_: object) -> None:
            raise AssertionError("a buffer was bound again")

        monkeypatch.setattr(ort.OrtValue, "ortvalue_from_numpy", refuse)
        for seed in range(3):
            for role, step in steps:
                output = session.run(role, random_ids(2, step, seed), cache)
                assert (id(output.token), id(output.confidence)) == arrays[role, step]
        assert len(cache.bindings) == num_bindings

    def test_decode_and_verify_share_an_engine(self, session: OnnxRuntimeSession) -> None:
        cache = prefilled(session, 1)
        for role in (Role.DECODE, Role.VERIFY):
            session.run(role, random_ids(1, 1), cache)
        bound = [cache.bindings.get(StepShape(0, 1, *ran)) for ran in ((Role.DECODE, 2), (Role.VERIFY, 1))]
        assert bound[0] is not None
        assert bound[1] is not None
        assert bound[0].engine is bound[1].engine


class TestRefusals:
    @pytest.mark.parametrize(
        ("role", "shape", "field"),
        [
            (Role.QUADRATIC, (1, 8), "role"),
            (Role.DECODE, (1, 2), "input_ids"),
            (Role.VERIFY, (1, 9), "input_ids"),
            (Role.DENOISE, (1, 0), "input_ids"),
            (Role.VERIFY, (2, 4), "input_ids"),
            (Role.PREFILL, (1, 17), "input_ids"),
            (Role.PREFILL, (1, 4), "last_index"),
        ],
    )
    def test_step(self, session: OnnxRuntimeSession, role: Role, shape: tuple[int, int], field: str) -> None:
        with pytest.raises(InvalidInputError) as caught:
            session.run(role, random_ids(*shape), session.create_cache(1))
        assert caught.value.field == field

    @pytest.mark.parametrize("last_index", [-1, 4])
    def test_last_index_out_of_the_step(self, session: OnnxRuntimeSession, last_index: int) -> None:
        with pytest.raises(InvalidInputError, match="last_index"):
            session.run(Role.PREFILL, random_ids(1, 4), session.create_cache(1), np.array([last_index]))

    def test_a_full_cache(self, session: OnnxRuntimeSession) -> None:
        cache = session.create_cache(2)
        cache.length[:] = 3, cache.capacity - 8
        session.run(Role.VERIFY, random_ids(2, 8), cache)
        cache.length[1] += 1
        with pytest.raises(InvalidInputError, match="cache_length"):
            session.run(Role.VERIFY, random_ids(2, 8), cache)

    def test_a_cache_of_another_session(self, session: OnnxRuntimeSession, oracle: EagerSession, tiny_bundle: Bundle) -> None:
        for other in (OnnxRuntimeSession.open(tiny_bundle, num_threads=1), oracle):
            with pytest.raises(InvalidInputError, match="cache"):
                session.run(Role.DECODE, random_ids(1, 1), other.create_cache(1))

    @pytest.mark.parametrize("batch", [0, 5])
    def test_batch_size(self, session: OnnxRuntimeSession, batch: int) -> None:
        with pytest.raises(InvalidInputError, match="batch_size"):
            session.create_cache(batch)

    def test_a_role_the_bundle_was_not_built_for(self, tiny_checkpoint_dir: Path, tmp_path: Path) -> None:
        bundle = Bundle.open(build_bundle(tiny_checkpoint_dir, tmp_path / "ar", modes=(Mode.AR,)))
        session = OnnxRuntimeSession.open(bundle, num_threads=1)
        assert session.roles == {Role.PREFILL, Role.DECODE}
        with pytest.raises(InvalidInputError, match=r"role: got 'draft', allowed: decode, prefill"):
            session.run(Role.DRAFT, random_ids(1, 8), session.create_cache(1))

    def test_number_of_threads(self, tiny_bundle: Bundle) -> None:
        with pytest.raises(InvalidInputError, match="num_threads"):
            OnnxRuntimeSession.open(tiny_bundle, num_threads=0)

    def test_another_target(self, tiny_bundle_dir: Path, tmp_path: Path) -> None:
        copy = copy_bundle(tiny_bundle_dir, tmp_path / "copy")
        rewrite_manifest(copy, target=Target.TENSORRT_RTX)
        with pytest.raises(BundleError, match="tensorrt-rtx"):
            OnnxRuntimeSession.open(Bundle.open(copy))

    def test_an_engine_that_does_not_load_is_named(self, tiny_bundle_dir: Path, tmp_path: Path) -> None:
        copy = copy_bundle(tiny_bundle_dir, tmp_path / "copy")
        (copy / "engines/denoise.onnx").write_bytes(b"no model")
        rewrite_manifest(copy)
        with pytest.raises(BundleError, match=r"engines/denoise\.onnx: onnxruntime"):
            OnnxRuntimeSession.open(Bundle.open(copy))

    def test_an_engine_of_another_contract_is_named(self, tiny_bundle_dir: Path, tmp_path: Path) -> None:
        copy = copy_bundle(tiny_bundle_dir, tmp_path / "copy")
        swap_engine(copy, Role.PREFILL, by=Role.DENOISE)
        with pytest.raises(BundleError, match=r"engines/denoise\.onnx: its inputs are not those of role prefill"):
            OnnxRuntimeSession.open(Bundle.open(copy))


MEMORY_SCRIPT = """
import ctypes, json, sys
import numpy as np
from nemodiff_trt.bundle import Bundle
from nemodiff_trt.runtime.session_onnxruntime import OnnxRuntimeSession

def anonymous_bytes():
    # What the allocator keeps of freed buffers is no copy of anything, and differs from run to run.
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    with open("/proc/self/smaps_rollup") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("Anonymous:"))

bundle = Bundle.open(sys.argv[1], verify=False)
before = anonymous_bytes()
session = OnnxRuntimeSession.open(bundle, num_threads=1)
cache = session.create_cache(1)
for role in sorted(session.roles):
    step = 1 if role == "decode" else 4
    session.run(role, np.full((1, step), 200), cache, np.array([3]) if role == "prefill" else None)
print(json.dumps({"grown": anonymous_bytes() - before, "engines": len({id(e) for e in session._engines.values()})}))
"""


@pytest.fixture(scope="module")
def large_bundle_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Enough weights to tell a copy of them from everything else."""
    folder = tmp_path_factory.mktemp("large")
    config = tiny_config(hidden_size=512, intermediate_size=1536, head_dim=64, vocab_size=12288)
    return build_bundle(random_checkpoint(folder / "checkpoint", config), folder / "bundle")


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="needs the memory accounting of Linux")
class TestMemory:
    """Private memory is counted: pages of the mapped weight file are shared and can be dropped by the system at any time."""

    def measure(self, bundle_dir: Path) -> tuple[int, int, int]:
        """Bytes of private memory that a session takes, number of its engines, bytes of the matrices they multiply with."""
        result = subprocess.run(
            [sys.executable, "-c", MEMORY_SCRIPT, str(bundle_dir)], capture_output=True, text=True, check=True
        )
        found = json.loads(result.stdout)
        report = Bundle.open(bundle_dir, verify=False).report()
        return found["grown"], found["engines"], report["packed_matrices"]["num_bytes"]

    def test_four_engines_hold_no_copy_of_the_weights(self, large_bundle_dir: Path) -> None:
        grown, num_engines, matrix_bytes = self.measure(large_bundle_dir)
        assert num_engines == 4
        assert matrix_bytes > 40e6
        # Graphs, activations and the largest matrix, packed once to be compared and freed; copies would be four times this.
        assert grown < matrix_bytes

    def test_the_measurement_sees_copies(self, large_bundle_dir: Path, tmp_path: Path) -> None:
        copy = copy_bundle(large_bundle_dir, tmp_path / "copy")
        for path in (copy / "engines").iterdir():
            model = onnx.load(path, load_external_data=False)
            for tensor in model.graph.initializer:
                kept = [entry for entry in tensor.external_data if not entry.key.startswith("prepacked")]
                del tensor.external_data[:]
                tensor.external_data.extend(kept)
            path.write_bytes(model.SerializeToString())
        rewrite_manifest(copy)
        grown, num_engines, matrix_bytes = self.measure(copy)
        assert grown > 0.9 * num_engines * matrix_bytes

"""The whole TensorRT session on a stand-in for module and device: binding, profiles, graphs, memory.

The stand-in engines compute with the eager decoder from the addresses the session gave them (support/fake_tensorrt.py).
"""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nemodiff_trt.bundle import Bundle
from nemodiff_trt.runtime.recent_steps import StepShape
from nemodiff_trt.runtime.session_eager import EagerSession
from nemodiff_trt.runtime.session_tensorrt import DeviceCache, TensorRTSession
from nemodiff_trt.runtime.tensorrt_bindings import buffer_bytes, place_weights
from nemodiff_trt.runtime.tri_mode_lm import TriModeLM
from nemodiff_trt.tokenizer import Tokenizer
from nemodiff_trt.vocabulary import Role
from support.fake_tensorrt import ACTIVATION_BYTES
from support.gpu_bundles import make_gpu_bundle
from support.gpu_machine import Machine, prefilled, random_ids

# The same code computes both sides in fp32; a padded step sums in another order. Keys and values are of the order of one.
ERROR = 2e-5
BIDIRECTIONAL = (Role.DENOISE, Role.DRAFT)
ALL_STEPS = [
    (Role.DECODE, 1),
    *((role, step) for role in (Role.VERIFY, *BIDIRECTIONAL) for step in (1, 2, 5, 8)),
]


@pytest.fixture(scope="module")
def bundle_dir(tiny_bundle_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_gpu_bundle(tiny_bundle_dir, tmp_path_factory.mktemp("gpu") / "bundle")


@pytest.fixture(scope="module")
def bundle(bundle_dir: Path) -> Bundle:
    return Bundle.open(bundle_dir)


@pytest.fixture
def machine(bundle: Bundle) -> Machine:
    return Machine(bundle)


@pytest.fixture(scope="module")
def shared(bundle: Bundle) -> TensorRTSession:
    return Machine(bundle).open()


@pytest.fixture(scope="module")
def oracle(bundle: Bundle) -> EagerSession:
    return EagerSession.from_bundle(bundle)


def assert_equal_steps(sessions: tuple[Any, Any], caches: list[Any], role: Role, ids: np.ndarray) -> None:
    ours, right = (each.run(role, ids, cache) for each, cache in zip(sessions, caches, strict=True))
    np.testing.assert_array_equal(ours.token, right.token)
    np.testing.assert_allclose(ours.confidence, right.confidence, rtol=0, atol=ERROR)
    for mine, wanted in zip([*caches[0].keys, *caches[0].values], [*caches[1].keys, *caches[1].values], strict=True):
        for row, length in enumerate(caches[0].length):
            used = slice(0, length + ids.shape[1])
            np.testing.assert_allclose(mine[row, :, used].numpy(), wanted[row, :, used].numpy(), rtol=0, atol=ERROR)


class TestEqualsEager:
    @pytest.mark.parametrize("batch", [1, 3])
    @pytest.mark.parametrize(("role", "step"), ALL_STEPS)
    def test_first_step_and_replay(
        self, shared: TensorRTSession, oracle: EagerSession, role: Role, step: int, batch: int
    ) -> None:
        sessions = (shared, oracle)
        caches = [prefilled(each, batch) for each in sessions]
        for seed in (1, 2):
            assert_equal_steps(sessions, caches, role, random_ids(batch, step, seed))
            for cache in caches:
                cache.length += 1

    @pytest.mark.parametrize("lengths", [(16,), (3, 16, 7), (2, 5)])
    def test_prefill(self, shared: TensorRTSession, oracle: EagerSession, lengths: tuple[int, ...]) -> None:
        ids, last = random_ids(len(lengths), max(lengths)), np.array(lengths) - 1
        outputs = [each.run(Role.PREFILL, ids, each.create_cache(len(lengths)), last) for each in (shared, oracle)]
        assert outputs[0].token.shape == (len(lengths), 1)
        np.testing.assert_array_equal(outputs[0].token, outputs[1].token)
        np.testing.assert_allclose(outputs[0].confidence, outputs[1].confidence, rtol=0, atol=ERROR)

    def test_without_graphs(self, machine: Machine, oracle: EagerSession) -> None:
        sessions = (machine.open(cuda_graphs=False), oracle)
        caches = [prefilled(each, 2) for each in sessions]
        for seed in (1, 2):
            assert_equal_steps(sessions, caches, Role.VERIFY, random_ids(2, 8, seed))
        assert machine.device.num_captures == 0

    def test_caches_take_turns(self, shared: TensorRTSession, oracle: EagerSession) -> None:
        sessions = (shared, oracle)
        pairs = [[prefilled(each, batch, length) for each in sessions] for batch, length in ((2, 12), (2, 9), (1, 5))]
        for seed in range(3):
            for caches in pairs:
                assert_equal_steps(sessions, caches, Role.VERIFY, random_ids(caches[0].batch_size, 4, seed))

    @pytest.mark.parametrize("mode", ["ar", "diffusion", "self_speculation"])
    def test_answers(self, bundle: Bundle, shared: TensorRTSession, oracle: EagerSession, mode: str) -> None:
        prompts = ["the and", "€ the", "x" * 40, ""]
        tokenizer = Tokenizer.from_dir(bundle.tokenizer_dir)
        models = [TriModeLM(session, tokenizer) for session in (shared, oracle)]
        results = [model.generate(prompts, mode=mode, max_new_tokens=24, ignore_eos=True) for model in models]
        assert [r.token_ids for r in results[0]] == [r.token_ids for r in results[1]]
        assert [r.stats.forward_passes for r in results[0]] == [r.stats.forward_passes for r in results[1]]

    def test_answers_that_fill_the_context(self, bundle: Bundle, shared: TensorRTSession) -> None:
        lm = TriModeLM(shared, Tokenizer.from_dir(bundle.tokenizer_dir))
        prompts, limit = ["x" * 61, "the and"], shared.limits.max_seq_len
        plain, fast = (
            lm.generate(prompts, mode=mode, max_new_tokens=limit, ignore_eos=True) for mode in ("ar", "self_speculation")
        )
        assert [result.token_ids for result in plain] == [result.token_ids for result in fast]


class TestBuffers:
    def test_a_step_allocates_binds_and_captures_nothing(self, machine: Machine) -> None:
        session = machine.open()
        cache = prefilled(session, 2)
        steps = {(Role.DECODE, 1), (Role.DRAFT, 8), (Role.VERIFY, 8), (Role.VERIFY, 4)}
        first = {key: session.run(key[0], random_ids(2, key[1]), cache) for key in steps}
        arrays = {key: (id(output.token), id(output.confidence)) for key, output in first.items()}
        before = (machine.counts, list(machine.device.allocated), len(machine.device.pinned_bytes), machine.device.num_launches)
        for seed in range(3):
            for role, step in steps:
                output = session.run(role, random_ids(2, step, seed), cache)
                assert (id(output.token), id(output.confidence)) == arrays[role, step]
        after = (machine.counts, machine.device.allocated, len(machine.device.pinned_bytes), machine.device.num_launches)
        assert after == before

    def test_memory_is_what_was_predicted(self, machine: Machine) -> None:
        session = machine.open()
        cache = session.create_cache(3)
        predicted = session.memory(3)
        assert predicted.activations == ACTIVATION_BYTES
        assert sum(machine.device.allocated) == predicted.total - predicted.engines
        session.run(Role.PREFILL, random_ids(3, 16), cache, np.full(3, 15))
        assert sum(machine.device.allocated) == predicted.total - predicted.engines

    def test_weights_are_on_the_device_once(self, machine: Machine) -> None:
        session = machine.open()
        for batch in (1, 2):
            cache = prefilled(session, batch)
            for role in session.roles - {Role.PREFILL}:
                session.run(role, random_ids(batch, 1), cache)
        addresses = machine.api.calls.addresses
        assert all(len(addresses[name]) == 1 for name in machine.bundle.manifest.weights)
        total = buffer_bytes(place_weights(machine.bundle.manifest))
        assert machine.device.allocated.count(total) == 1

    def test_one_graph_and_one_context_for_each_shape_of_a_cache(self, machine: Machine) -> None:
        session = machine.open()
        cache = prefilled(session, 2)
        for _ in range(2):
            for role, step in ALL_STEPS:
                session.run(role, random_ids(2, step), cache)
        shapes = 1 + len(ALL_STEPS)
        assert len(cache.bindings) == machine.counts["context"] == machine.device.num_captures == shapes
        # Each plan is loaded once, though decode and verify share one.
        assert machine.counts["deserialize"] == 4

    def test_prompts_of_all_lengths_share_a_graph(self, machine: Machine) -> None:
        session = machine.open()
        cache = session.create_cache(1)
        for length in range(1, 17):
            session.run(Role.PREFILL, random_ids(1, length, seed=length), cache, np.array([length - 1]))
        assert list(cache.bindings) == [StepShape(0, 1, Role.PREFILL, 16)]

    def test_a_prefill_step_at_the_end_of_the_cache_is_not_padded(self, machine: Machine, oracle: EagerSession) -> None:
        sessions = (machine.open(), oracle)
        caches = [each.create_cache(1) for each in sessions]
        ids, last = random_ids(1, 5), np.array([4])
        for cache in caches:
            cache.length[:] = cache.capacity - 5
        ours, right = (s.run(Role.PREFILL, ids, cache, last) for s, cache in zip(sessions, caches, strict=True))
        np.testing.assert_array_equal(ours.token, right.token)
        assert list(caches[0].bindings) == [StepShape(0, 1, Role.PREFILL, 5)]

    def test_a_dropped_cache_gives_its_memory_back_at_once(self, machine: Machine) -> None:
        session = machine.open()
        cache = prefilled(session, 1)
        bound = cache.bindings.get(StepShape(0, 1, Role.PREFILL, 16))
        assert bound is not None
        # The allocation that keys and values are views of.
        context, memory = weakref.ref(bound.context), weakref.ref(cache.keys[0]._base)
        del bound
        assert memory() is not None
        gc.disable()
        try:
            del cache
            assert context() is None
            assert memory() is None
        finally:
            gc.enable()

    def test_the_length_is_not_changed(self, shared: TensorRTSession) -> None:
        cache = prefilled(shared, 2)
        before = cache.length.copy()
        shared.run(Role.DRAFT, random_ids(2, 8), cache)
        np.testing.assert_array_equal(cache.length, before)

    def test_every_shape_within_the_limits(self, shared: TensorRTSession) -> None:
        for batch in range(1, 5):
            cache = shared.create_cache(batch)
            for role in (Role.VERIFY, Role.DENOISE, Role.DRAFT):
                for step in range(1, 9):
                    assert shared.run(role, random_ids(batch, step), cache).token.shape == (batch, step)


def test_caches_belong_to_a_session(shared: TensorRTSession) -> None:
    cache = shared.create_cache(2)
    assert isinstance(cache, DeviceCache)
    assert all(key.shape == (2, 2, 136, 16) for key in [*cache.keys, *cache.values])
    assert all(not key.any() for key in [*cache.keys, *cache.values])

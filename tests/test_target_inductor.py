"""Target inductor: packages equal to the eager decoder in every role, in place, over one copy of the weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch._inductor import config as inductor_config

from nemodiff_trt.build_engines.capture import capture_step
from nemodiff_trt.build_engines.compile import compile_bundle
from nemodiff_trt.build_engines.lowering.torch_program import lower_to_torch
from nemodiff_trt.bundle import Bundle
from nemodiff_trt.errors import BundleError, InvalidInputError, LoweringError
from nemodiff_trt.options import CompileOptions
from nemodiff_trt.passes.decompose_plugins import decompose_plugins
from nemodiff_trt.runtime.cli.check import CheckArguments, check
from nemodiff_trt.runtime.device_speculation import DeviceSpeculation
from nemodiff_trt.runtime.open_session import open_session
from nemodiff_trt.runtime.parity import compare_sessions
from nemodiff_trt.runtime.recent_steps import StepShape
from nemodiff_trt.runtime.session_eager import EagerSession
from nemodiff_trt.runtime.session_inductor import InductorSession
from nemodiff_trt.vocabulary import BUILT_MODES, Mode, Precision, Role, Target
from support.bundles import build_bundle, copy_bundle, rewrite_manifest, swap_engine
from support.checkpoints import tiny_config
from support.decoding import Request, decode
from support.graphs import pass_options

# fp32 sums of at most 96 products, in another order; keys and values are of the order of one.
CONFIDENCE_ERROR = 1e-5
CACHE_ERROR = 2e-5
MODES = (Mode.AR, Mode.SELF_SPECULATION)


@pytest.fixture(scope="module")
def bundle_dir(tiny_checkpoint_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three programs, compiled once for all tests. Shared: do not write to it, copy it."""
    folder = tmp_path_factory.mktemp("inductor") / "bundle"
    return build_bundle(tiny_checkpoint_dir, folder, target=Target.INDUCTOR, modes=MODES)


@pytest.fixture(scope="module")
def bundle(bundle_dir: Path) -> Bundle:
    return Bundle.open(bundle_dir)


@pytest.fixture(scope="module")
def session(bundle: Bundle) -> InductorSession:
    return InductorSession.open(bundle, num_threads=1)


@pytest.fixture(scope="module")
def oracle(bundle: Bundle) -> EagerSession:
    return EagerSession.from_bundle(bundle)


def random_ids(batch: int, step: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(101, 400, (batch, step))


def prefilled(session: Any, batch: int, length: int = 12) -> Any:
    """Cache with `batch` rows of different length, filled with random tokens."""
    cache = session.create_cache(batch)
    session.run(Role.PREFILL, random_ids(batch, length), cache, np.full(batch, length - 1))
    cache.length[:] = length - 2 * np.arange(batch)
    return cache


def buffers(cache: Any) -> list[Tensor]:
    return [*cache.keys, *cache.values]


# Set up by the fixture with the first test, whose time limit has to cover three compilations on a busy machine.
@pytest.mark.timeout(300)
class TestEqualsEager:
    @pytest.mark.parametrize("batch", [1, 3])
    @pytest.mark.parametrize(
        ("role", "step"), [(Role.DECODE, 1), *((role, step) for role in (Role.VERIFY, Role.DRAFT) for step in (1, 5, 8))]
    )
    def test_role(self, session: InductorSession, oracle: EagerSession, role: Role, step: int, batch: int) -> None:
        caches = [prefilled(each, batch) for each in (session, oracle)]
        ids = random_ids(batch, step, seed=1)
        if role is Role.DRAFT:
            ids[:, 1:] = session.model.mask_token_id
        ours, right = (each.run(role, ids, cache) for each, cache in zip((session, oracle), caches, strict=True))
        np.testing.assert_array_equal(ours.token, right.token)
        np.testing.assert_allclose(ours.confidence, right.confidence, rtol=0, atol=CONFIDENCE_ERROR)
        for mine, wanted in zip(buffers(caches[0]), buffers(caches[1]), strict=True):
            for row, length in enumerate(caches[0].length):
                used = slice(0, length + step)
                torch.testing.assert_close(mine[row, :, used], wanted[row, :, used], rtol=0, atol=CACHE_ERROR)

    @pytest.mark.parametrize("lengths", [(16,), (1,), (3, 16, 7)])
    def test_prefill_reads_the_last_token_of_each_row(
        self, session: InductorSession, oracle: EagerSession, lengths: tuple[int, ...]
    ) -> None:
        ids, last = random_ids(len(lengths), max(lengths)), np.array(lengths) - 1
        outputs = [each.run(Role.PREFILL, ids, each.create_cache(len(lengths)), last) for each in (session, oracle)]
        np.testing.assert_array_equal(outputs[0].token, outputs[1].token)
        np.testing.assert_allclose(outputs[0].confidence, outputs[1].confidence, rtol=0, atol=CONFIDENCE_ERROR)

    @pytest.mark.parametrize(("role", "step"), [(Role.DECODE, 1), (Role.VERIFY, 8)])
    def test_the_last_slots_of_the_cache(self, session: InductorSession, oracle: EagerSession, role: Role, step: int) -> None:
        caches = [prefilled(each, 2) for each in (session, oracle)]
        for cache in caches:
            cache.length[1] = cache.capacity - step
        ids = random_ids(2, step, seed=4)
        ours, right = (each.run(role, ids, cache) for each, cache in zip((session, oracle), caches, strict=True))
        np.testing.assert_array_equal(ours.token, right.token)
        np.testing.assert_allclose(ours.confidence, right.confidence, rtol=0, atol=CONFIDENCE_ERROR)

    def test_greedy_self_speculation_is_greedy_ar(self, session: InductorSession) -> None:
        requests = [Request(tuple(random_ids(1, length, seed=length)[0]), 30, ignore_eos=True) for length in (3, 9, 21)]
        plain, fast = (decode(session, mode, requests) for mode in MODES)
        assert fast.tokens == plain.tokens
        assert [len(tokens) for tokens in plain.tokens] == [30] * 3


class TestBuffers:
    def test_cycles_on_the_device_give_the_answers_of_the_engine(self, session: InductorSession) -> None:
        requests = [Request(tuple(random_ids(1, 4 + 5 * row, row)[0].tolist()), 15 + row, ignore_eos=True) for row in range(3)]
        cache = session.create_cache(len(requests))
        ids, lengths = np.zeros((3, 14), np.int64), np.array([len(request.prompt) for request in requests])
        for row, request in enumerate(requests):
            ids[row, : lengths[row]] = request.prompt
        seeds = session.run(Role.PREFILL, ids, cache, lengths - 1).token[:, 0].tolist()
        cache.length[:] = lengths
        answers = [[seed] for seed in seeds]
        for rows in DeviceSpeculation(session, cache, 8).decode(seeds, [14, 15, 16]):
            for answer, cycle in zip(answers, rows, strict=True):
                answer += cycle.emitted
        assert answers == decode(session, Mode.SELF_SPECULATION, requests).tokens

    def test_the_cache_is_written_in_place_and_nowhere_else(self, session: InductorSession) -> None:
        cache = prefilled(session, 2)
        before = [(buffer.data_ptr(), buffer.clone()) for buffer in buffers(cache)]
        session.run(Role.VERIFY, random_ids(2, 4, seed=2), cache)
        for (address, old), buffer in zip(before, buffers(cache), strict=True):
            assert buffer.data_ptr() == address
            for row, length in enumerate(cache.length):
                written = torch.zeros(cache.capacity, dtype=torch.bool)
                written[length : length + 4] = True
                assert torch.equal(buffer[row][:, ~written], old[row][:, ~written])
                assert (buffer[row][:, written] != old[row][:, written]).any(dim=-1).all()

    def test_slots_nobody_uses_are_not_read(self, session: InductorSession) -> None:
        outputs = []
        for filling in (0.0, float("nan")):
            cache = prefilled(session, 1)
            for buffer in buffers(cache):
                buffer[:, :, 12:] = filling
            outputs.append(session.run(Role.VERIFY, random_ids(1, 4), cache))
        np.testing.assert_array_equal(outputs[0].confidence, outputs[1].confidence)

    def test_a_step_binds_nothing_twice(self, session: InductorSession) -> None:
        cache = prefilled(session, 2)
        session.run(Role.VERIFY, random_ids(2, 4), cache)
        shape = StepShape(0, 2, Role.VERIFY, 4)
        binding = cache.bindings.get(shape)
        session.run(Role.VERIFY, random_ids(2, 4, seed=1), cache)
        assert binding is not None
        assert cache.bindings.get(shape) is binding

    def test_all_roles_read_one_copy_of_the_weights(self, session: InductorSession, bundle: Bundle) -> None:
        addresses: dict[str, set[int]] = {}
        for role, engine in bundle.manifest.roles.items():
            for name, tensor in zip(engine.weights, session._engines[role].weights, strict=True):
                addresses.setdefault(name, set()).add(tensor.data_ptr())
        assert addresses.keys() == bundle.manifest.weights.keys()
        assert all(len(found) == 1 for found in addresses.values())

    def test_packages_hold_no_weights(self, bundle_dir: Path, tmp_path: Path) -> None:
        """Without a vocabulary projection in the weight file, every token is as likely as any other."""
        copy = copy_bundle(bundle_dir, tmp_path / "copy")
        path = copy / "weights/shared.safetensors"
        tensors = load_file(path)
        tensors["diffusion_head.weight"].zero_()
        save_file(tensors, path)
        rewrite_manifest(copy)
        other = InductorSession.open(Bundle.open(copy))
        output = other.run(Role.PREFILL, random_ids(1, 4), other.create_cache(1), np.array([3]))
        np.testing.assert_allclose(output.confidence, 1 / other.model.vocab_size, rtol=1e-5)

    def test_decode_and_verify_share_a_package(self, bundle: Bundle) -> None:
        roles = bundle.manifest.roles
        assert roles[Role.DECODE].file == roles[Role.VERIFY].file == "engines/decode-verify.pt2"
        assert len({engine.file for engine in roles.values()}) == 3


class TestRefusals:
    @pytest.mark.parametrize(
        ("role", "shape", "field"),
        [
            (Role.DENOISE, (1, 8), "role"),
            (Role.DECODE, (1, 2), "input_ids"),
            (Role.VERIFY, (1, 9), "input_ids"),
            (Role.VERIFY, (2, 4), "input_ids"),
            (Role.PREFILL, (1, 4), "last_index"),
        ],
    )
    def test_step(self, session: InductorSession, role: Role, shape: tuple[int, int], field: str) -> None:
        with pytest.raises(InvalidInputError) as caught:
            session.run(role, random_ids(*shape), session.create_cache(1))
        assert caught.value.field == field

    def test_a_full_cache(self, session: InductorSession) -> None:
        cache = session.create_cache(1)
        cache.length[0] = cache.capacity - 7
        with pytest.raises(InvalidInputError, match="cache_length"):
            session.run(Role.VERIFY, random_ids(1, 8), cache)

    def test_a_cache_of_another_session(self, session: InductorSession, oracle: EagerSession) -> None:
        with pytest.raises(InvalidInputError, match="cache"):
            session.run(Role.DECODE, random_ids(1, 1), oracle.create_cache(1))

    def test_number_of_threads(self, bundle: Bundle) -> None:
        with pytest.raises(InvalidInputError, match="num_threads"):
            InductorSession.open(bundle, num_threads=0)

    def test_another_target(self, bundle_dir: Path, tmp_path: Path) -> None:
        copy = copy_bundle(bundle_dir, tmp_path / "copy")
        rewrite_manifest(copy, target=Target.TENSORRT_RTX)
        with pytest.raises(BundleError, match="tensorrt-rtx"):
            InductorSession.open(Bundle.open(copy))

    def test_another_cpu(self, bundle_dir: Path, bundle: Bundle, tmp_path: Path) -> None:
        copy = copy_bundle(bundle_dir, tmp_path / "copy")
        versions = bundle.manifest.tool_versions
        rewrite_manifest(copy, tool_versions={**versions, "cpu": versions["cpu"] + " matrix_registers"})
        with pytest.raises(BundleError, match="compiled for a CPU with matrix_registers; build it again on this machine"):
            open_session(Bundle.open(copy))

    def test_a_package_that_does_not_load_is_named(self, bundle_dir: Path, tmp_path: Path) -> None:
        copy = copy_bundle(bundle_dir, tmp_path / "copy")
        (copy / "engines/draft.pt2").write_bytes(b"no archive")
        rewrite_manifest(copy)
        with pytest.raises(BundleError, match=r"engines/draft\.pt2: torch"):
            InductorSession.open(Bundle.open(copy))

    def test_a_package_of_another_contract_is_named(self, bundle_dir: Path, tmp_path: Path) -> None:
        copy = copy_bundle(bundle_dir, tmp_path / "copy")
        swap_engine(copy, Role.PREFILL, by=Role.DRAFT)
        with pytest.raises(BundleError, match=r"engines/draft\.pt2: its inputs are not those of role prefill"):
            InductorSession.open(Bundle.open(copy))

    def test_a_machine_without_a_compiler(self, tiny_checkpoint_dir: Path, tmp_path: Path) -> None:
        output = tmp_path / "never"
        options = CompileOptions(checkpoint=str(tiny_checkpoint_dir), target=Target.INDUCTOR, output=output)
        with inductor_config.patch({"cpp.cxx": (None, "no-such-compiler")}), pytest.raises(InvalidInputError) as caught:
            compile_bundle(options)
        assert "tried no-such-compiler" in caught.value.allowed
        assert not output.exists()

    def test_a_graph_that_no_pipeline_has_seen(self) -> None:
        captured = capture_step(tiny_config(), torch.float32, 64)
        with pytest.raises(LoweringError, match=r"step_positions: nemodiff\.step_positions\.default was not decomposed"):
            lower_to_torch(captured, 64)
        decompose_plugins(captured, pass_options())
        with pytest.raises(LoweringError, match="present_key_0: not written in place"):
            lower_to_torch(captured, 64)


@pytest.mark.slow
class TestWholeModels:
    def test_half_precision(self, tiny_checkpoint_dir: Path, tmp_path: Path) -> None:
        folder = build_bundle(tiny_checkpoint_dir, tmp_path / "b", target=Target.INDUCTOR, precision="bf16", modes=(Mode.AR,))
        bundle = Bundle.open(folder)
        session = InductorSession.open(bundle, num_threads=1)
        assert session.create_cache(1).keys[0].dtype == torch.bfloat16
        found = compare_sessions(session, EagerSession.from_bundle(bundle), list(range(110, 125)))
        assert all(parity.is_within(Precision.BF16) for parity in found.values())

    def test_plugins_change_no_token_in_any_mode(self, tiny_checkpoint_dir: Path, tmp_path: Path) -> None:
        """The same checkpoint with its operators as calls and as plain torch."""
        found = {}
        requests = [Request(tuple(random_ids(1, 6 + 3 * row, row)[0].tolist()), 20, ignore_eos=True) for row in range(2)]
        for plugins in (False, True):
            folder = build_bundle(
                tiny_checkpoint_dir, tmp_path / str(plugins), target=Target.INDUCTOR, modes=BUILT_MODES, plugins=plugins
            )
            bundle = Bundle.open(folder)
            kinds = {
                name: bundle.manifest.operators[name] for name in ("attention", "masked_attention", "decision_head", "rms_norm")
            }
            own = "plugin" if plugins else "compiled torch"
            assert kinds == {name: own if name != "rms_norm" else "compiled torch" for name in kinds}
            session = InductorSession.open(bundle, num_threads=1)
            found[plugins] = {mode: decode(session, mode, requests, block_length=4).tokens for mode in BUILT_MODES}
        assert found[True] == found[False]
        assert all(len(tokens) == 20 for answers in found[True].values() for tokens in answers)

    def test_the_packaged_checkpoint_in_every_mode(self, tmp_path: Path) -> None:
        """Parity of every role and losslessness, as `nemodiff check` does."""
        compile_bundle(
            CompileOptions(checkpoint="nemodiff-tiny", target=Target.INDUCTOR, output=tmp_path / "b", max_seq_len=512)
        )
        assert check(CheckArguments(bundle=tmp_path / "b")) == 0

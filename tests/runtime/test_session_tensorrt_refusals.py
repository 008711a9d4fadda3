"""What a TensorRT session refuses and how it says so; the file of compiled kernels; the target without what only RTX has.

On the stand-in of test_session_tensorrt.py.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nemodiff_trt.bundle import Bundle
from nemodiff_trt.errors import BundleError, InvalidInputError
from nemodiff_trt.runtime.kernel_cache import kernel_cache_file
from nemodiff_trt.runtime.session_eager import EagerSession
from nemodiff_trt.runtime.session_tensorrt import TensorRTSession
from nemodiff_trt.vocabulary import Role, Target
from support.bundles import copy_bundle, rewrite_manifest
from support.gpu_bundles import make_gpu_bundle
from support.gpu_machine import Machine, prefilled, random_ids


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
    def test_step(self, shared: TensorRTSession, role: Role, shape: tuple[int, int], field: str) -> None:
        with pytest.raises(InvalidInputError) as caught:
            shared.run(role, random_ids(*shape), shared.create_cache(1))
        assert caught.value.field == field

    @pytest.mark.parametrize("last_index", [-1, 4])
    def test_last_index_out_of_the_step(self, shared: TensorRTSession, last_index: int) -> None:
        with pytest.raises(InvalidInputError, match="last_index"):
            shared.run(Role.PREFILL, random_ids(1, 4), shared.create_cache(1), np.array([last_index]))

    def test_a_full_cache(self, shared: TensorRTSession) -> None:
        cache = shared.create_cache(2)
        cache.length[:] = 3, cache.capacity - 8
        shared.run(Role.VERIFY, random_ids(2, 8), cache)
        cache.length[1] += 1
        with pytest.raises(InvalidInputError, match="cache_length"):
            shared.run(Role.VERIFY, random_ids(2, 8), cache)

    def test_a_cache_of_another_session(self, shared: TensorRTSession, machine: Machine, oracle: EagerSession) -> None:
        for other in (machine.open(), oracle):
            with pytest.raises(InvalidInputError, match="cache"):
                shared.run(Role.DECODE, random_ids(1, 1), other.create_cache(1))

    @pytest.mark.parametrize("batch", [0, 5])
    def test_batch_size(self, shared: TensorRTSession, batch: int) -> None:
        with pytest.raises(InvalidInputError, match="batch_size"):
            shared.create_cache(batch)

    @pytest.mark.parametrize(
        ("fail", "message"),
        [
            ("context", "no execution context"),
            ("profile", "profile 0 was refused"),
            ("shape", r"input_ids of shape \(1, 16\) was refused"),
            ("address", "the address of input_ids was refused"),
            ("infer", "have no shape"),
            ("execute", "the step could not be run"),
            ("capturable", "cannot be captured as a CUDA graph, open the session with cuda_graphs=False"),
            ("runtime_cache", "took no runtime cache"),
        ],
    )
    def test_an_engine_that_fails(self, bundle: Bundle, fail: str, message: str) -> None:
        session = Machine(bundle, fail).open()
        # The profile of one full row is narrower than that of all shapes.
        message = message.replace("profile 0", "profile 1")
        with pytest.raises(BundleError, match=message):
            session.run(Role.PREFILL, random_ids(1, 16), session.create_cache(1), np.array([1]))

    def test_a_missing_shape_is_named_with_the_engine(self, bundle: Bundle) -> None:
        session = Machine(bundle, "execute").open()
        with pytest.raises(BundleError, match=r"^engines/draft\.plan: role draft: the step could not be run$"):
            session.run(Role.DRAFT, random_ids(1, 8), session.create_cache(1))

    def test_an_engine_that_does_not_load_is_named(self, bundle_dir: Path, tmp_path: Path) -> None:
        copy = copy_bundle(bundle_dir, tmp_path / "copy")
        (copy / "engines/denoise.plan").write_bytes(b"no plan")
        rewrite_manifest(copy)
        with pytest.raises(
            BundleError, match=r"^engines/denoise\.plan: tensorrt-rtx 1\.7\.1\.116 cannot load it \(bad magic\)$"
        ):
            Machine(Bundle.open(copy)).open()

    def test_an_engine_of_another_contract_is_named(self, bundle: Bundle) -> None:
        machine = Machine(bundle)
        roles = bundle.manifest.roles
        swapped = {**roles, Role.DRAFT: roles[Role.PREFILL]}
        machine.bundle = dataclasses.replace(bundle, manifest=dataclasses.replace(bundle.manifest, roles=swapped))
        with pytest.raises(BundleError, match=r"engines/prefill\.plan: its inputs are not those of role draft"):
            machine.open()

    @pytest.mark.parametrize(("fail", "message"), [("dtype", "input_ids is INT8, not int64"), ("alias", "in place")])
    def test_an_engine_of_another_signature(self, bundle: Bundle, fail: str, message: str) -> None:
        with pytest.raises(BundleError, match=message):
            Machine(bundle, fail).open()

    def test_a_weight_file_of_another_bundle(self, bundle_dir: Path, tmp_path: Path) -> None:
        copy = copy_bundle(bundle_dir, tmp_path / "copy")
        shapes = dict(Bundle.open(copy).manifest.weight_shapes)
        name = next(iter(shapes))
        rewrite_manifest(copy, weight_shapes={**shapes, name: (3, *shapes[name])})
        with pytest.raises(BundleError, match="is not the tensor of the manifest"):
            Machine(Bundle.open(copy)).open()

    def test_a_device_without_memory(self, bundle: Bundle) -> None:
        with pytest.raises(BundleError, match=r"GiB of GPU memory \(weights .* activations 0\.00\), 0\.00 GiB are free"):
            Machine(bundle, num_bytes=1000).open()

    def test_no_memory_for_more_rows(self, bundle: Bundle) -> None:
        whole = Machine(bundle).open().memory(1)
        session = Machine(bundle, num_bytes=whole.total - whole.engines).open()
        with pytest.raises(InvalidInputError, match="batch_size: got 2, allowed: fewer rows"):
            session.create_cache(2)
        assert session.create_cache(1).batch_size == 1

    def test_another_target(self, tiny_bundle: Bundle) -> None:
        with pytest.raises(BundleError, match="was built for onnxruntime"):
            TensorRTSession.open(tiny_bundle)


class TestKernelCache:
    def run_once(self, bundle: Bundle, kernels: Path | None) -> Machine:
        machine = Machine(bundle)
        session = machine.open(kernels=kernels)
        session.run(Role.DECODE, random_ids(1, 1), session.create_cache(1))
        return machine

    def test_kernels_are_kept_and_found_again(self, bundle: Bundle, tmp_path: Path) -> None:
        path = tmp_path / "kernels"
        self.run_once(bundle, path)
        assert path.read_bytes() == b"kernels of 1 contexts"
        assert list(tmp_path.iterdir()) == [path]
        assert self.run_once(bundle, path).api.kernel_blob == path.read_bytes()

    def test_a_file_of_another_gpu_is_replaced_and_reported(
        self, bundle: Bundle, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        path = tmp_path / "kernels"
        path.write_bytes(b"of another GPU")
        self.run_once(bundle, path)
        assert path.read_bytes() == b"kernels of 1 contexts"
        assert "made by another GPU, driver or version" in caplog.text

    def test_a_folder_that_cannot_be_written_to_is_reported(
        self, bundle: Bundle, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        self.run_once(bundle, tmp_path / "missing" / "kernels")
        assert "compiled kernels cannot be kept" in caplog.text

    def test_nothing_is_written_unless_asked(self, bundle: Bundle) -> None:
        before = set(bundle.path.parent.iterdir())
        self.run_once(bundle, None)
        assert set(bundle.path.parent.iterdir()) == before

    def test_the_file_lies_beside_the_bundle(self, tmp_path: Path) -> None:
        assert kernel_cache_file(tmp_path / "a.bundle") == tmp_path / "a.bundle.kernels"


class TestFullTensorRT:
    """One class for both targets; what only TensorRT-RTX has is left alone."""

    def test_without_what_only_rtx_has(self, bundle_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        copy = copy_bundle(bundle_dir, tmp_path / "copy")
        rewrite_manifest(copy, target=Target.TENSORRT, sms=(100,))
        machine = Machine(Bundle.open(copy))

        def refuse(*_: object) -> Any:
            raise AssertionError("not in this module")

        for owner, name in (("FakeConfig", "create_runtime_cache"), ("FakeContext", "is_stream_capturable")):
            monkeypatch.setattr(f"support.fake_tensorrt.{owner}.{name}", refuse)
        session = machine.open(kernels=tmp_path / "kernels")
        cache = prefilled(session, 1)
        session.run(Role.DECODE, random_ids(1, 1), cache)
        assert machine.device.num_captures == 2
        assert not (tmp_path / "kernels").exists()

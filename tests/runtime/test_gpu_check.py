"""What is said on machines that cannot run a GPU bundle: one line, before anything is loaded."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from nemodiff_trt.bundle import Bundle, RoleEngine, StepProfile
from nemodiff_trt.command_line import run_app
from nemodiff_trt.errors import BundleError
from nemodiff_trt.runtime import gpu_check
from nemodiff_trt.runtime.cli.app import build_app
from nemodiff_trt.runtime.gpu_check import DeviceFacts, check_device, check_runnable, probe_device
from nemodiff_trt.runtime.tensorrt_bindings import DeviceMemory, predict_memory
from nemodiff_trt.vocabulary import Role, Target
from support.gpu_bundles import make_gpu_bundle

GIB = 2**30
BUILT_FOR = "its tensorrt-rtx engines were built for SM120, SM121 (RTX PRO 6000 / RTX 50 series, DGX Spark)"
GOOD = DeviceFacts("1.7.1.116", "", 1, "2.13.0", "13.0", "NVIDIA RTX PRO 6000", 120, 90 * GIB)
NEEDED = DeviceMemory(16 * GIB, GIB // 2, 2 * GIB, 10**6, 10**6)


@pytest.fixture(scope="module")
def bundle_dir(tiny_bundle_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_gpu_bundle(tiny_bundle_dir, tmp_path_factory.mktemp("gpu") / "bundle")


@pytest.fixture(scope="module")
def bundle(bundle_dir: Path) -> Bundle:
    return Bundle.open(bundle_dir)


def changed(bundle: Bundle, **changes: Any) -> Bundle:
    return dataclasses.replace(bundle, manifest=dataclasses.replace(bundle.manifest, **changes))


def refusal(bundle: Bundle, needed: DeviceMemory = NEEDED, **facts: Any) -> str:
    with pytest.raises(BundleError) as caught:
        check_device(bundle, dataclasses.replace(GOOD, **facts), needed)
    text = str(caught.value)
    assert "\n" not in text
    start = f"{bundle.path}: "
    assert text.startswith(start)
    return text.removeprefix(start)


class TestDevice:
    @pytest.mark.parametrize("sm", [120, 121])
    def test_a_machine_that_can(self, bundle: Bundle, sm: int) -> None:
        check_device(bundle, dataclasses.replace(GOOD, sm=sm), NEEDED)

    def test_no_gpu(self, bundle: Bundle) -> None:
        assert refusal(bundle, num_gpus=0, torch_cuda=None, gpu_name=None) == f"no CUDA GPU found; {BUILT_FOR}"

    def test_no_package(self, bundle: Bundle) -> None:
        text = refusal(bundle, api_version=None, api_failure="No module named 'tensorrt_rtx'", num_gpus=0)
        assert text == (
            "the Python package tensorrt_rtx cannot be imported (No module named 'tensorrt_rtx'); its engines were built with"
            " version 1.7.1.116, install it with pip install 'nemodiff_trt[rtx]'"
        )

    def test_another_version(self, bundle: Bundle) -> None:
        text = refusal(bundle, api_version="1.6.0.5", num_gpus=0)
        assert text.startswith("its engines were built with tensorrt_rtx 1.7.1.116, installed is 1.6.0.5;")

    def test_torch_without_cuda(self, bundle: Bundle) -> None:
        assert refusal(bundle, torch_cuda=None, gpu_name=None).startswith("torch 2.13.0 is a build without CUDA")

    def test_torch_that_cannot_use_the_driver(self, bundle: Bundle) -> None:
        assert refusal(bundle, gpu_name=None).startswith(
            "torch 2.13.0 (CUDA 13.0) cannot use the GPU, its driver may be too old"
        )

    def test_another_gpu(self, bundle: Bundle) -> None:
        text = refusal(bundle, sm=89, gpu_name="NVIDIA GeForce RTX 4090")
        assert text == f"this GPU is a NVIDIA GeForce RTX 4090, SM89; {BUILT_FOR}"

    def test_too_little_memory(self, bundle: Bundle) -> None:
        assert refusal(bundle, free_bytes=12 * GIB) == (
            "needs 18.50 GiB of GPU memory (weights 16.00, engines 0.50, cache 2.00, step 0.00, scratch 0.00),"
            " 12.00 GiB are free on NVIDIA RTX PRO 6000"
        )

    def test_memory_to_the_byte(self, bundle: Bundle) -> None:
        check_device(bundle, dataclasses.replace(GOOD, free_bytes=NEEDED.total), NEEDED)
        refusal(bundle, free_bytes=NEEDED.total - 1)

    def test_software_is_named_before_the_gpu(self, bundle: Bundle) -> None:
        assert "cannot be imported" in refusal(bundle, api_version=None, num_gpus=0, sm=0, free_bytes=0)
        assert "installed is" in refusal(bundle, api_version="1", num_gpus=0, sm=0, free_bytes=0)
        assert "no CUDA GPU" in refusal(bundle, num_gpus=0, torch_cuda=None, gpu_name=None, sm=0, free_bytes=0)
        assert "SM89" in refusal(bundle, sm=89, free_bytes=0)

    def test_gpus_without_a_known_name(self, bundle: Bundle) -> None:
        assert refusal(changed(bundle, sms=(135,)), num_gpus=0).endswith("were built for SM135")

    @pytest.mark.parametrize(
        ("target", "tool", "module"),
        [(Target.TENSORRT, "tensorrt", "tensorrt"), (Target.TENSORRT_RTX, "tensorrt_rtx_cu12", "tensorrt_rtx")],
    )
    def test_the_version_is_that_of_the_target(self, bundle: Bundle, target: Target, tool: str, module: str) -> None:
        versions = {"tensorrt-rtx": "9.9", "torch": "2"} if target is Target.TENSORRT else {"tensorrt": "9.9"}
        other = changed(bundle, target=target, tool_versions={**versions, tool: "5.0"})
        assert f"built with {module} 5.0, installed is 1.7.1.116" in refusal(other)

    def test_a_manifest_without_the_version(self, bundle: Bundle) -> None:
        with pytest.raises(BundleError, match="does not say which version of tensorrt-rtx"):
            check_device(changed(bundle, tool_versions={"tensorrt": "11.4"}), GOOD, NEEDED)


class TestRunnable:
    def test_a_good_bundle(self, bundle: Bundle) -> None:
        check_runnable(bundle)

    def test_without_weights(self, bundle: Bundle) -> None:
        with pytest.raises(BundleError, match=r"has no weights to run with; bind a checkpoint to it with `nemodiff bind`"):
            check_runnable(changed(bundle, has_weights=False))

    def test_for_the_cpu(self, tiny_bundle: Bundle) -> None:
        with pytest.raises(BundleError, match="was built for onnxruntime; this session runs tensorrt-rtx, tensorrt"):
            check_runnable(tiny_bundle)

    def test_for_no_gpu(self, bundle: Bundle) -> None:
        with pytest.raises(BundleError, match="names no GPU"):
            check_runnable(changed(bundle, sms=()))

    def test_shapes_left_out(self, bundle: Bundle) -> None:
        narrow = RoleEngine("engines/x.plan", profiles=(StepProfile(1, 4, 1, 7),))
        with pytest.raises(BundleError, match=r"engines/x\.plan: no profile takes 1 rows of 8 tokens in role draft"):
            check_runnable(changed(bundle, roles={**bundle.manifest.roles, Role.DRAFT: narrow}))


class TestProbe:
    def test_this_machine(self) -> None:
        facts = probe_device(Target.TENSORRT)
        assert (facts.gpu_name is None) == (facts.sm == 0)
        assert facts.torch_version

    def test_a_package_that_breaks_on_import(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def broken(_: Target) -> Any:
            raise OSError("libnvinfer.so.11: cannot open shared object file\ndetails")

        monkeypatch.setattr(gpu_check, "load_api", broken)
        facts = probe_device(Target.TENSORRT)
        assert (facts.api_version, facts.api_failure) == (None, "libnvinfer.so.11: cannot open shared object file")

    def test_a_machine_without_a_driver(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def missing(name: str) -> Any:
            raise OSError(name)

        monkeypatch.setattr(gpu_check.ctypes, "CDLL", missing)
        assert probe_device(Target.TENSORRT).num_gpus == 0

    @pytest.mark.parametrize(("result", "expected"), [(0, 3), (100, 0)])
    def test_gpus_are_counted_by_the_driver(self, monkeypatch: pytest.MonkeyPatch, result: int, expected: int) -> None:
        class Driver:
            def __init__(self, name: str) -> None:
                assert name == "libcuda.so.1"

            def cuInit(self, _: int) -> int:  # noqa: N802
                return result

            def cuDeviceGetCount(self, count: Any) -> int:  # noqa: N802
                count._obj.value = 3
                return 0

        monkeypatch.setattr(gpu_check.ctypes, "CDLL", Driver)
        monkeypatch.setattr("torch.cuda.is_available", lambda: False)
        assert probe_device(Target.TENSORRT).num_gpus == expected


class TestCommandLine:
    @pytest.fixture
    def no_gpu(self, monkeypatch: pytest.MonkeyPatch) -> None:
        facts = DeviceFacts("1.7.1.116", "", 0, "2.13.0")
        monkeypatch.setattr("nemodiff_trt.runtime.session_tensorrt.probe_device", lambda _: facts)

    def run(self, capsys: pytest.CaptureFixture[str], bundle_dir: Path) -> tuple[int, str]:
        code = run_app(build_app(), "nemodiff", ["generate", "--bundle", str(bundle_dir), "--prompt", "hi", "--json"])
        captured = capsys.readouterr()
        assert captured.out == ""
        return code, captured.err

    @pytest.mark.usefixtures("no_gpu")
    def test_without_a_gpu(self, capsys: pytest.CaptureFixture[str], bundle_dir: Path) -> None:
        code, error = self.run(capsys, bundle_dir)
        assert code == 1
        assert error == f"nemodiff: error: {bundle_dir}: no CUDA GPU found; {BUILT_FOR}\n"

    @pytest.mark.usefixtures("no_gpu")
    def test_without_weights_nothing_else_is_looked_at(
        self, capsys: pytest.CaptureFixture[str], tiny_bundle_dir: Path, tmp_path: Path
    ) -> None:
        folder = make_gpu_bundle(tiny_bundle_dir, tmp_path / "bare", has_weights=False)
        code, error = self.run(capsys, folder)
        assert code == 1
        assert error.count("\n") == 1
        assert "nemodiff bind" in error

    def test_the_prediction_is_what_the_check_is_given(self, bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
        from nemodiff_trt.runtime.session_tensorrt import TensorRTSession

        small = dataclasses.replace(GOOD, free_bytes=predict_memory(bundle.manifest, 1).total - 1)
        monkeypatch.setattr("nemodiff_trt.runtime.session_tensorrt.probe_device", lambda _: small)
        with pytest.raises(BundleError, match="GiB of GPU memory"):
            TensorRTSession.open(bundle)

"""Can this machine run this bundle? Asked before anything is loaded, answered by one line that says what is missing.

Looking at the machine (`probe_device`) and judging what was seen (`check_device`) are separate, so that every answer is tested
on machines without a GPU.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

from nemodiff_trt.bundle import Bundle, Manifest
from nemodiff_trt.errors import BundleError
from nemodiff_trt.runtime.tensorrt_api import MODULES, load_api
from nemodiff_trt.runtime.tensorrt_bindings import DeviceMemory, uncovered_shape
from nemodiff_trt.vocabulary import Target

# Compute capability -> GPUs that have it. https://developer.nvidia.com/cuda-gpus
_GPUS = {
    75: "RTX 20 series",
    80: "A100",
    86: "RTX 30 series",
    89: "RTX 40 series",
    90: "H100, H200",
    100: "B200, GB200",
    103: "B300, GB300",
    120: "RTX PRO 6000 / RTX 50 series",
    121: "DGX Spark",
}
_INSTALL = {Target.TENSORRT_RTX: "pip install 'nemodiff_trt[rtx]'", Target.TENSORRT: "pip install tensorrt"}
_GIB = 2**30


@dataclass(frozen=True, slots=True)
class DeviceFacts:
    """What a machine offers.

    Args:
        api_version: of the target's Python package; None when it cannot be imported.
        api_failure: why it cannot.
        num_gpus: CUDA devices the driver sees; 0 without a driver.
        torch_version: of torch.
        torch_cuda: CUDA version torch was built with; None for a CPU build.
        gpu_name: of the device that would be used; None where torch cannot use it.
        sm: its compute capability, 120 for 12.0.
        free_bytes: its free memory.
    """

    api_version: str | None = None
    api_failure: str = ""
    num_gpus: int = 0
    torch_version: str = ""
    torch_cuda: str | None = None
    gpu_name: str | None = None
    sm: int = 0
    free_bytes: int = 0


def probe_device(target: Target) -> DeviceFacts:
    """Look at this machine and its first visible CUDA device, which is the one that would be used."""
    import torch

    version, failure = None, ""
    try:
        version = load_api(target).__version__
    # A package whose shared libraries are missing or do not fit fails in other ways than by ImportError.
    except (ImportError, OSError, RuntimeError) as error:
        failure = str(error).strip().split("\n", 1)[0] or type(error).__name__
    num_gpus, torch_cuda = _count_gpus(), torch.version.cuda
    facts = DeviceFacts(version, failure, num_gpus, torch.__version__, torch_cuda)
    if num_gpus == 0 or torch_cuda is None or not torch.cuda.is_available():
        return facts
    major, minor = torch.cuda.get_device_capability(0)
    free, _ = torch.cuda.mem_get_info(0)
    name = torch.cuda.get_device_name(0)
    return DeviceFacts(version, failure, num_gpus, torch.__version__, torch_cuda, name, 10 * major + minor, free)


def check_runnable(bundle: Bundle) -> None:
    """Refuse a bundle that no machine could run.

    Raises:
        BundleError: no checkpoint is bound to it, it names no GPU, or its engines leave shapes out that it promises.
    """
    manifest = bundle.manifest
    if manifest.target not in MODULES:
        raise BundleError(f"{bundle.path} was built for {manifest.target}; this session runs {', '.join(MODULES)}")
    if manifest.quantization is not None and manifest.quantization.is_rehearsal:
        raise BundleError(
            f"{bundle.path}: its engines hold random scales, they were built from a geometry to be looked at; compile them"
            " for a checkpoint with `nemodiff bind`"
        )
    if not manifest.has_weights:
        raise BundleError(
            f"{bundle.path}: built from a geometry alone, it has no weights to run with; bind a checkpoint to it with"
            " `nemodiff bind`"
        )
    if not manifest.sms:
        raise BundleError(f"{bundle.path}: its manifest names no GPU; build the bundle again")
    for role, engine in manifest.roles.items():
        shape = uncovered_shape(engine, role, manifest.limits)
        if shape is not None:
            raise BundleError(
                f"{engine.file}: no profile takes {shape[0]} rows of {shape[1]} tokens in role {role}; build the bundle again"
            )


def check_device(bundle: Bundle, facts: DeviceFacts, needed: DeviceMemory) -> None:
    """Refuse a machine that cannot run `bundle`, which then was not even read.

    Raises:
        BundleError: names the first thing missing (package, version, GPU, CUDA build of torch, kind of GPU, memory) and what
            the bundle was built for.
    """
    manifest, module = bundle.manifest, MODULES[bundle.manifest.target]
    built_for = f"its {manifest.target} engines were built for {_sm_names(manifest)}"
    built_with = _built_with(manifest)
    if facts.api_version is None:
        raise BundleError(
            f"{bundle.path}: the Python package {module} cannot be imported ({facts.api_failure}); its engines were built with"
            f" version {built_with}, install it with {_INSTALL[manifest.target]}"
        )
    if facts.api_version != built_with:
        raise BundleError(
            f"{bundle.path}: its engines were built with {module} {built_with}, installed is {facts.api_version}; install that"
            " version or build the bundle again"
        )
    if not facts.num_gpus:
        raise BundleError(f"{bundle.path}: no CUDA GPU found; {built_for}")
    if facts.torch_cuda is None:
        raise BundleError(
            f"{bundle.path}: torch {facts.torch_version} is a build without CUDA and cannot use the GPU; install a CUDA build"
        )
    if facts.gpu_name is None:
        raise BundleError(
            f"{bundle.path}: torch {facts.torch_version} (CUDA {facts.torch_cuda}) cannot use the GPU, its driver may be too"
            f" old; {built_for}"
        )
    if facts.sm not in manifest.sms:
        raise BundleError(f"{bundle.path}: this GPU is a {facts.gpu_name}, SM{facts.sm}; {built_for}")
    check_memory(bundle, facts.gpu_name, facts.free_bytes, needed)


def check_memory(bundle: Bundle, gpu_name: str, free_bytes: int, needed: DeviceMemory) -> None:
    """Refuse to start what cannot fit.

    Raises:
        BundleError: says how much is needed, for what, and how much is free.
    """
    if needed.total <= free_bytes:
        return
    names = ("weights", "engines", "cache", "step", "scratch", "activations")
    parts = {name: getattr(needed, name) for name in names}
    listed = ", ".join(f"{name} {_gib(size)}" for name, size in parts.items() if size)
    raise BundleError(
        f"{bundle.path}: needs {_gib(needed.total)} GiB of GPU memory ({listed}), {_gib(free_bytes)} GiB are free on {gpu_name}"
    )


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / _GIB:.2f}"


def _sm_names(manifest: Manifest) -> str:
    listed = ", ".join(f"SM{sm}" for sm in manifest.sms)
    known = [_GPUS[sm] for sm in manifest.sms if sm in _GPUS]
    return f"{listed} ({', '.join(known)})" if known else listed


def _built_with(manifest: Manifest) -> str:
    """Version of the target's package in the manifest, which names the distribution, such as tensorrt-rtx-cu13."""
    wanted = str(manifest.target)
    for name, version in manifest.tool_versions.items():
        distribution = name.replace("_", "-")
        is_rtx = distribution.startswith(Target.TENSORRT_RTX)
        if distribution.startswith(wanted) and is_rtx == (manifest.target is Target.TENSORRT_RTX):
            return version
    raise BundleError(f"the manifest does not say which version of {wanted} built the engines; build the bundle again")


def _count_gpus() -> int:
    """CUDA devices, asked of the driver itself: a CPU build of torch cannot tell."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0
    count = ctypes.c_int(0)
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return 0
    return count.value

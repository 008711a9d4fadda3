"""Pick the session that runs the engines of a bundle."""

from __future__ import annotations

from nemodiff_trt.bundle import Bundle
from nemodiff_trt.errors import InvalidInputError
from nemodiff_trt.runtime.session import Session
from nemodiff_trt.vocabulary import Target


def open_session(bundle: Bundle, num_threads: int | None = None) -> Session:
    """Open the engines of `bundle` for its target.

    Args:
        bundle: an opened bundle.
        num_threads: CPU threads a step may use, on a CPU only; None for what the backend takes by itself.

    Raises:
        BundleError: the machine cannot run the target, or an engine cannot be loaded.
        InvalidInputError: `num_threads` is not positive, or given for a GPU.
    """
    if bundle.manifest.target is Target.ONNXRUNTIME:
        from nemodiff_trt.runtime.session_onnxruntime import OnnxRuntimeSession

        session: Session = OnnxRuntimeSession.open(bundle, num_threads)
        return session
    if bundle.manifest.target.is_for_gpu:
        from nemodiff_trt.runtime.kernel_cache import kernel_cache_file
        from nemodiff_trt.runtime.session_tensorrt import TensorRTSession

        if num_threads is not None:
            allowed = f"nothing for target {bundle.manifest.target}, which runs on a GPU"
            raise InvalidInputError("num_threads", num_threads, allowed)
        return TensorRTSession.open(bundle, kernels=kernel_cache_file(bundle.path))
    from nemodiff_trt.runtime.session_inductor import InductorSession

    return InductorSession.open(bundle, num_threads)

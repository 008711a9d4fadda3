"""Pick the session that runs the engines of a bundle."""

from __future__ import annotations

from nemodiff_trt.bundle import Bundle
from nemodiff_trt.errors import BundleError
from nemodiff_trt.runtime.session import Session
from nemodiff_trt.vocabulary import Target


def open_session(bundle: Bundle, num_threads: int | None = None) -> Session:
    """Open the engines of `bundle` for its target.

    Args:
        bundle: an opened bundle.
        num_threads: CPU threads a step may use; None for all CPUs of the process.

    Raises:
        BundleError: this version has no session for the bundle's target, or an engine cannot be loaded.
        InvalidInputError: `num_threads` is not positive.
    """
    if bundle.manifest.target is Target.ONNXRUNTIME:
        from nemodiff_trt.runtime.session_onnxruntime import OnnxRuntimeSession

        session: Session = OnnxRuntimeSession.open(bundle, num_threads)
        return session
    raise BundleError(f"{bundle.path}: target {bundle.manifest.target} cannot be run, only {Target.ONNXRUNTIME}")

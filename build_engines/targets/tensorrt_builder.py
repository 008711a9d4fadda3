"""One TensorRT plan from one step graph. The API module, `tensorrt_rtx` or `tensorrt`, is a parameter.

TensorRT-RTX compiles for any GPU it is told about, on a machine that has none; TensorRT compiles for the GPU it finds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from nemodiff_trt.build_engines.lowering.network import lower_to_network
from nemodiff_trt.bundle import StepProfile
from nemodiff_trt.errors import LoweringError
from nemodiff_trt.passes.graph import StepGraph

# Called with the finished share of a compilation, 0 to 1.
ShareListener = Callable[[float], None]
# Said by every compilation on a machine without a GPU; the compilation for a named target is none the worse for it.
_NO_DRIVER = "CUDA driver version is insufficient"


@dataclass(frozen=True, slots=True)
class PlanRequest:
    """What to compile a graph into.

    Args:
        profiles: at least one; the shapes of each are optimised for its largest batch and step.
        cache_capacity: K, the same in every step.
        sms: compute capabilities, empty for the GPU of this machine.
        weights: stored tensors to embed; the others become inputs.
        plugin_sm: compute capability that plugins are compiled for; None where there are none.
    """

    profiles: tuple[StepProfile, ...]
    cache_capacity: int
    sms: tuple[int, ...]
    weights: Mapping[str, np.ndarray] | None = None
    plugin_sm: int | None = None


class TimingCache:
    """What TensorRT measured of its kernels for one plan, so that it need not measure again for the next.

    TensorRT-RTX measures nothing at build time; there it is left out.
    """

    def __init__(self) -> None:
        self._content = b""

    def lend(self, config: Any) -> None:
        """Let a compilation use and extend it."""
        config.set_timing_cache(config.create_timing_cache(self._content), False)

    def take_back(self, config: Any) -> None:
        """Keep what the compilation added."""
        self._content = bytes(config.get_timing_cache().serialize())


def compile_plan(
    api: Any, graph: StepGraph, request: PlanRequest, on_share: ShareListener, timings: TimingCache | None = None
) -> bytes:
    """Compile `graph` into a serialised engine.

    Raises:
        LoweringError: the graph cannot be expressed, or the compiler refused it; its first message is given.
    """
    messages: list[str] = []
    logger = _collecting_logger(api, messages)
    builder = api.Builder(logger)
    network = builder.create_network(_strongly_typed(api))
    fixed = {"K": request.cache_capacity}
    if all(profile.min_step == profile.max_step == 1 for profile in request.profiles):
        # An axis that is always 1 leaves nothing to check or to size at run time.
        fixed["S"] = 1
    mixes_batches = any(profile.min_batch == 1 < profile.max_batch for profile in request.profiles)
    lower_to_network(api, network, graph, fixed, request.weights, request.plugin_sm, mixes_batches)
    config = builder.create_builder_config()
    config.progress_monitor = _progress_monitor(api, on_share)
    for profile in request.profiles:
        config.add_optimization_profile(_optimization_profile(builder, network, profile))
    if request.sms:
        config.num_compute_capabilities = len(request.sms)
        for index, sm in enumerate(request.sms):
            config.set_compute_capability(getattr(api.ComputeCapability, f"SM{sm}"), index)
    if api.__name__ == "tensorrt_rtx":
        # Sessions capture their steps as CUDA graphs, which an engine that allocates by itself cannot take part in.
        config.set_flag(api.BuilderFlag.REQUIRE_USER_ALLOCATION)
    if timings is not None:
        timings.lend(config)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        reason = messages[0] if messages else "no reason was given"
        raise LoweringError(f"{api.__name__} {api.__version__} cannot compile this step: {reason}")
    if timings is not None:
        timings.take_back(config)
    return bytes(plan)


def _strongly_typed(api: Any) -> int:
    """Creation flags: dtypes are those of the graph. TensorRT-RTX knows nothing else and has retired the flag."""
    return 0 if api.__name__ == "tensorrt_rtx" else 1 << int(api.NetworkDefinitionCreationFlag.STRONGLY_TYPED)


def _optimization_profile(builder: Any, network: Any, profile: StepProfile) -> Any:
    """Smallest, best and largest shape of every input; B is the first axis of each, every other dynamic one is S."""
    shapes = builder.create_optimization_profile()
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        shape = tuple(tensor.shape)
        if -1 not in shape:
            continue

        def at(batch: int, step: int, shape: tuple[int, ...] = shape) -> tuple[int, ...]:
            first = batch if shape[0] == -1 else shape[0]
            return (first, *(step if extent == -1 else extent for extent in shape[1:]))

        largest = at(profile.max_batch, profile.max_step)
        shapes.set_shape(tensor.name, at(profile.min_batch, profile.min_step), largest, largest)
    return shapes


def _collecting_logger(api: Any, messages: list[str]) -> Any:
    """A logger that keeps errors, so that a refused network can say why."""

    class CollectingLogger(api.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            api.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity in (api.ILogger.Severity.ERROR, api.ILogger.Severity.INTERNAL_ERROR) and _NO_DRIVER not in message:
                messages.append(message)

    return CollectingLogger()


def _progress_monitor(api: Any, on_share: ShareListener) -> Any:
    """Passes on the progress of the outermost phases, which the compiler does not number: the last one to move counts."""

    class Monitor(api.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            api.IProgressMonitor.__init__(self)
            self._totals: dict[str, int] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            if parent_phase is None:
                self._totals[phase_name] = max(num_steps, 1)

        def step_complete(self, phase_name: str, step: int) -> bool:
            if phase_name in self._totals:
                on_share(min(1.0, (step + 1) / self._totals[phase_name]))
            return True

        def phase_finish(self, phase_name: str) -> None:
            self._totals.pop(phase_name, None)

    return Monitor()

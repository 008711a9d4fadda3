"""Session over TensorRT-RTX or TensorRT on one CUDA device. A step copies a few token ids, launches one CUDA graph and waits.

Memory: weights lie on the device once and are bound to every engine. Activations, inputs, outputs and scratch of all steps
share one block each, because steps run one after the other on one stream. Keys and values are updated in place. All of it is
allocated before the first step, so addresses never change, and a captured graph stays valid as long as its cache lives.

Every captured graph has an execution context of its own: it may refer to state of its context that another shape would change.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nemodiff_trt import contract
from nemodiff_trt.bundle import Bundle
from nemodiff_trt.bundle.manifest import WEIGHTS_FILE
from nemodiff_trt.bundle.safetensors_layout import read_header
from nemodiff_trt.config import ModelConfig
from nemodiff_trt.contract import Limits
from nemodiff_trt.errors import BundleError, InvalidInputError
from nemodiff_trt.runtime.bound_cache import BoundCache, own_cache
from nemodiff_trt.runtime.cuda_device import CudaDevice, Device
from nemodiff_trt.runtime.device_steps import DeviceStep, Work
from nemodiff_trt.runtime.gpu_check import check_device, check_memory, check_runnable, probe_device
from nemodiff_trt.runtime.kv_cache import KVCache
from nemodiff_trt.runtime.recent_steps import RecentSteps, StepShape
from nemodiff_trt.runtime.session import StepOutput
from nemodiff_trt.runtime.step_checks import (
    check_batch_size,
    check_fit,
    check_role_and_step,
    copy_inputs,
)
from nemodiff_trt.runtime.step_layout import StepLayout
from nemodiff_trt.runtime.tensorrt_api import Api, ExecutionContext, load_api
from nemodiff_trt.runtime.tensorrt_bindings import (
    Buffer,
    DeviceMemory,
    StepKey,
    StepPlan,
    TensorBinding,
    buffer_bytes,
    largest_steps,
    launched_step,
    place_cache,
    place_weights,
    plan_step,
    predict_memory,
)
from nemodiff_trt.runtime.tensorrt_engines import Engines
from nemodiff_trt.vocabulary import Role

_NUMPY_DTYPES = {"int64": np.int64, "float32": np.float32, "bool": np.bool_}


@dataclass(slots=True)
class _BoundStep:
    """One shape on one cache: its context, the page-locked arrays that a step copies from and to, and how to launch it."""

    context: ExecutionContext
    input_ids: np.ndarray
    cache_length: np.ndarray
    last_index: np.ndarray | None
    layout: StepLayout | None
    output: StepOutput
    launch: Callable[[], None]
    replay: Callable[[], None] | None = None


class DeviceCache(BoundCache[Tensor, _BoundStep]):
    """Keys and values in device memory."""

    __slots__ = ()

    def copy_row(self, source: int, target: int, begin: int, end: int) -> None:
        # On the stream of the steps, so in their order.
        for buffer in (*self.keys, *self.values):
            self.owner.device.copy(buffer[target, :, begin:end], buffer[source, :, begin:end])

    def move(self, row: int, source: int, target: int) -> None:
        for buffer in (*self.keys, *self.values):
            self.owner.device.copy(buffer[row, :, target], buffer[row, :, source])

    def addresses(self) -> dict[str, int]:
        """Address of every cache tensor of a step, inputs and outputs alike."""
        found: dict[str, int] = {}
        for layer, (key, value) in enumerate(zip(self.keys, self.values, strict=True)):
            found |= dict.fromkeys((contract.past_key(layer), contract.present_key(layer)), key.data_ptr())
            found |= dict.fromkeys((contract.past_value(layer), contract.present_value(layer)), value.data_ptr())
        return found


class TensorRTSession:
    """Runs the roles of a bundle built for tensorrt-rtx or tensorrt. Not safe for use from several threads at once."""

    def __init__(self, bundle: Bundle, engines: Engines, device: Device, cuda_graphs: bool) -> None:
        """Use `open`. Allocates everything but caches and uploads the weights."""
        manifest = bundle.manifest
        self._bundle, self._manifest = bundle, manifest
        self._engines, self.device, self._cuda_graphs = engines, device, cuda_graphs
        self._weight_places = place_weights(manifest)
        self._activation_bytes = engines.activation_bytes
        largest = largest_steps(manifest)
        self._memory = {
            buffer: self._allocate(max(plan.num_bytes(buffer) for plan in largest), buffer)
            for buffer in (Buffer.STEP_INPUT, Buffer.STEP_OUTPUT, Buffer.SCRATCH)
        }
        self._activations = self._allocate(self._activation_bytes, "activations")
        self._memory[Buffer.WEIGHTS] = self._allocate(buffer_bytes(self._weight_places), Buffer.WEIGHTS)
        _upload_weights(bundle, self._weight_places, self._memory[Buffer.WEIGHTS], device)

    @classmethod
    def open(
        cls,
        bundle: Bundle,
        api: Api | None = None,
        device: Device | None = None,
        cuda_graphs: bool = True,
        kernels: Path | None = None,
    ) -> TensorRTSession:
        """Load engines and weights onto the device.

        Args:
            bundle: an opened bundle of target tensorrt-rtx or tensorrt.
            api: the Python module of the target; None imports it.
            device: where to run; None for the first CUDA device. A device given is not checked.
            cuda_graphs: capture every shape after its first step and replay it; otherwise launch kernel by kernel.
            kernels: file that keeps the kernels TensorRT-RTX compiles here; None compiles them at each start.

        Raises:
            BundleError: weights, software, GPU or memory are missing, or an engine does not fit; one line says which.
        """
        check_runnable(bundle)
        gpu_name = "this device"
        if device is None:
            facts = probe_device(bundle.manifest.target)
            check_device(bundle, facts, predict_memory(bundle.manifest, 1))
            gpu_name, device = str(facts.gpu_name), CudaDevice()
        engines = Engines(bundle, load_api(bundle.manifest.target) if api is None else api, kernels)
        # Engines are loaded by now, so their part is no longer free.
        needed = replace(predict_memory(bundle.manifest, 1), engines=0, activations=engines.activation_bytes)
        check_memory(bundle, gpu_name, device.free_bytes(), needed)
        return cls(bundle, engines, device, cuda_graphs)

    @property
    def model(self) -> ModelConfig:
        return self._manifest.model

    @property
    def limits(self) -> Limits:
        return self._manifest.limits

    @property
    def roles(self) -> frozenset[Role]:
        return frozenset(self._manifest.roles)

    @property
    def has_logits(self) -> bool:
        return self._manifest.keep_logits

    def memory(self, batch_size: int) -> DeviceMemory:
        """Device memory of this session and one cache of `batch_size` rows."""
        return replace(predict_memory(self._manifest, batch_size), activations=self._activation_bytes)

    def create_cache(self, batch_size: int, spare_rows: int = 0) -> DeviceCache:
        """Empty cache for `batch_size` rows, see `Session.create_cache`. Every range of rows has CUDA graphs of its own.

        Raises:
            InvalidInputError: the engines were built for fewer rows, or the device has no memory left for so many.
        """
        check_batch_size(batch_size, self.limits)
        places = place_cache(self._manifest, batch_size + spare_rows)
        num_bytes, free = buffer_bytes(places), self.device.free_bytes()
        if num_bytes > free:
            raise InvalidInputError("batch_size", batch_size, f"fewer rows: the cache takes {num_bytes} bytes, {free} are free")
        memory, dtype = self._allocate(num_bytes, Buffer.CACHE), getattr(torch, places[0].dtype)
        views = [memory[place.offset : place.end].view(dtype).view(place.shape) for place in places]
        # Keys and values of a layer follow each other, as in the contract.
        length = np.zeros(batch_size + spare_rows, np.int64)
        return DeviceCache(self, views[::2], views[1::2], length, self.limits.cache_capacity, RecentSteps())

    def run(
        self,
        role: Role,
        input_ids: np.ndarray,
        cache: KVCache[Any],
        last_index: np.ndarray | None = None,
        layout: StepLayout | None = None,
    ) -> StepOutput:
        """Run one step, see `Session.run`.

        A prefill step may run longer than asked for, as far as there is room; what it writes behind its tokens is never read.

        Raises:
            InvalidInputError: role, shapes, step length or cache do not fit this session, or the cache is full.
            BundleError: TensorRT could not run the step.
        """
        own, step = own_cache(cache, DeviceCache, self), input_ids.shape[-1]
        check_role_and_step(role, step, self._manifest.roles, self.limits)
        launched = launched_step(role, step, cache.capacity - check_fit(input_ids, cache), self.limits)
        shape = own.shape_of(role, launched)
        bound = own.bindings.get(shape) or self._bind(shape, own)
        copy_inputs(bound, input_ids, cache, last_index, layout)
        if bound.replay is None:
            self._run_first(role, bound)
        else:
            bound.replay()
            self.device.synchronize()
        return bound.output

    @property
    def queue(self) -> Device:
        """The stream of this session."""
        return self.device

    def device_step(self, role: Role, step: int, cache: KVCache[Any]) -> DeviceStep:
        """Bind a step to the device memory of inputs and results, see `DeviceSession`.

        Raises:
            InvalidInputError: role, step length or cache do not fit this session.
            BundleError: TensorRT refused the step.
        """
        own = own_cache(cache, DeviceCache, self)
        check_role_and_step(role, step, self._manifest.roles, self.limits)
        plan, context, launch = self._engine_step(role, step, own)
        engines, stream = self._engines, self.device.stream_handle
        names = (contract.INPUT_IDS, contract.CACHE_LENGTH, contract.TOKEN)
        ids, length, token = (self._step_tensor(plan, name) for name in names)
        return DeviceStep(ids, length, token, launch, lambda: engines.check_capturable(role, context, stream))

    def capture(self, work: Work, steps: Sequence[DeviceStep]) -> Work:
        """One CUDA graph of `work`, see `DeviceSession`; `work` itself without graphs.

        Raises:
            BundleError: a step cannot be captured.
        """
        if not self._cuda_graphs:
            return work
        for step in steps:
            step.check_capturable()
        return self.device.capture(work)

    def _step_tensor(self, plan: StepPlan, name: str) -> Tensor:
        binding = plan.binding(name)
        part = self._memory[binding.buffer][binding.offset : binding.end]
        return part.view(getattr(torch, binding.dtype)).view(binding.shape)

    def _run_first(self, role: Role, bound: _BoundStep) -> None:
        """Run a new shape, which also warms it up, and capture it for all further runs."""
        bound.launch()
        self.device.synchronize()
        bound.replay = bound.launch
        if self._cuda_graphs:
            self._engines.check_capturable(role, bound.context, self.device.stream_handle)
            bound.replay = self.device.capture(bound.launch)
        self._engines.save_kernels()

    def _bind(self, shape: StepShape, cache: DeviceCache) -> _BoundStep:
        """Make the engine's and the host's side of a step."""
        role, step = shape.role, shape.step
        plan, context, launch = self._engine_step(role, step, cache)
        host_input = self.device.pinned(plan.num_bytes(Buffer.STEP_INPUT))
        host_output = self.device.pinned(plan.result_bytes)
        output = StepOutput(*(_over(host_output, plan, name) for name in plan.result_names))
        bound = _BoundStep(
            context,
            _over(host_input, plan, contract.INPUT_IDS),
            _over(host_input, plan, contract.CACHE_LENGTH),
            _over(host_input, plan, contract.LAST_INDEX) if role is Role.PREFILL else None,
            StepLayout(*(_over(host_input, plan, name) for name in contract.LAYOUT)) if role.takes_layout else None,
            output,
            self._launcher(launch, host_input, host_output),
        )
        cache.bindings.put(shape, bound)
        return bound

    def _engine_step(self, role: Role, step: int, cache: DeviceCache) -> tuple[StepPlan, ExecutionContext, Work]:
        """A new context with profile, shapes and addresses, and what enqueues its engine: without keeping the cache alive."""
        plan = plan_step(self._manifest, StepKey(role, cache.batch_size, step))
        context = self._engines.create_context(role)
        self._configure(context, plan, cache.addresses())
        engines, stream = self._engines, self.device.stream_handle

        def launch() -> None:
            if not context.execute_async_v3(stream):
                raise engines.failure(role, "the step could not be run")

        return plan, context, launch

    def _configure(self, context: ExecutionContext, plan: StepPlan, cache: dict[str, int]) -> None:
        """Everything a context has to know. The order matters: a profile resets shapes."""
        role, stream = plan.key.role, self.device.stream_handle
        if not context.set_optimization_profile_async(plan.profile, stream):
            raise self._engines.failure(role, f"profile {plan.profile} was refused")
        # Set but by no means done: the switch may copy on the stream.
        self.device.synchronize()
        for binding in plan.bindings:
            # Shapes of weights are fixed in the engine.
            is_dynamic = binding.is_input and binding.buffer is not Buffer.WEIGHTS
            if is_dynamic and not context.set_input_shape(binding.name, binding.shape):
                raise self._engines.failure(role, f"{binding.name} of shape {binding.shape} was refused")
            # The cache may be a range of the rows of another.
            is_cache = binding.buffer is Buffer.CACHE
            address = cache[binding.name] if is_cache else self._memory[binding.buffer].data_ptr() + binding.offset
            if not context.set_tensor_address(binding.name, address):
                raise self._engines.failure(role, f"the address of {binding.name} was refused")
        missing = context.infer_shapes()
        if missing:
            raise self._engines.failure(role, f"{', '.join(missing)} have no shape")
        context.set_device_memory(self._activations.data_ptr(), self._activation_bytes)

    def _launcher(self, engine: Work, host_input: Tensor, host_output: Tensor) -> Work:
        """What a step enqueues: one copy to the device, the engine, one copy back. It must not keep the cache alive."""
        device = self.device
        inputs = self._memory[Buffer.STEP_INPUT][: host_input.numel()]
        outputs = self._memory[Buffer.STEP_OUTPUT][: host_output.numel()]

        def launch() -> None:
            device.copy(inputs, host_input)
            engine()
            device.copy(host_output, outputs)

        return launch

    def _allocate(self, num_bytes: int, name: str) -> Tensor:
        try:
            return self.device.zeros(num_bytes)
        except torch.OutOfMemoryError as error:
            free = self.device.free_bytes()
            raise BundleError(
                f"{self._bundle.path}: no GPU memory for {name}, {num_bytes} bytes are needed and {free} free"
            ) from error


def _over(memory: Tensor, plan: StepPlan, name: str) -> np.ndarray:
    """Array of a step tensor in the host's copy of its buffer."""
    binding = plan.binding(name)
    part: np.ndarray = memory.numpy()[binding.offset : binding.end]
    return part.view(_NUMPY_DTYPES[binding.dtype]).reshape(binding.shape)


def _upload_weights(bundle: Bundle, places: tuple[TensorBinding, ...], memory: Tensor, device: Device) -> None:
    """Copy the stored tensors to their places, byte by byte as they are in the file.

    Raises:
        BundleError: the weight file and the manifest disagree.
    """
    if not places:
        return
    spans = read_header(bundle.weights_path)
    # Private mapping: torch has no read-only tensors. Nothing is written, so no page is copied.
    data = torch.from_numpy(np.memmap(bundle.weights_path, dtype=np.uint8, mode="c"))
    for place in places:
        span = spans.get(place.name)
        if span is None or (span.dtype, span.shape) != (place.dtype, place.shape):
            raise BundleError(f"{WEIGHTS_FILE}: {place.name} is not the tensor of the manifest; build the bundle again")
        device.copy(memory[place.offset : place.end], data[span.start : span.start + span.num_bytes])
    device.synchronize()

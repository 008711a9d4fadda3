"""Session over ONNX Runtime on the CPU. A step copies the token ids in, runs, and allocates nothing.

Memory: the ONNX files hold no weights. Every `InferenceSession` maps the one weight file, raw and packed matrices alike,
so that all roles share the same physical pages. Keys and values are updated in place: past and present are bound to one buffer.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime as ort

from nemodiff_trt import contract
from nemodiff_trt.bundle import Bundle
from nemodiff_trt.config import ModelConfig
from nemodiff_trt.contract import ENGINE_FLOAT, Limits, step_contract
from nemodiff_trt.errors import BundleError, InvalidInputError
from nemodiff_trt.runtime.bound_cache import BoundCache, own_cache
from nemodiff_trt.runtime.kv_cache import KVCache
from nemodiff_trt.runtime.recent_steps import RecentSteps, StepShape
from nemodiff_trt.runtime.scratch_array import ScratchArray
from nemodiff_trt.runtime.session import StepOutput
from nemodiff_trt.runtime.step_checks import check_batch_size, check_role_and_step, fill_inputs, layout_arrays, longest_row
from nemodiff_trt.runtime.step_layout import StepLayout
from nemodiff_trt.vocabulary import Role, Target

_SESSION_CONFIG = {
    # Packing makes large passing copies; from the arena they would stay with the session for good.
    "session.use_device_allocator_for_initializers": "1",
    # Every role has threads of its own: those of one must not spin while the next one runs.
    "session.force_spinning_stop": "1",
}
_ERRORS_ONLY = 3
# From so many rows on, kernels sum in one order.
_LEAST_ROWS = 2


@dataclass(slots=True)
class _Binding:
    """Everything one step shape needs, bound once: arrays that the engine reads and writes, and the result over them."""

    engine: Any
    io: Any
    input_ids: np.ndarray
    cache_length: np.ndarray
    last_index: np.ndarray | None
    layout: StepLayout | None
    output: StepOutput


class OnnxRuntimeSession:
    """Runs the roles of a bundle built for the target onnxruntime. Not safe for use from several threads at once."""

    def __init__(self, bundle: Bundle, engines: dict[Role, Any]) -> None:
        """Use `open`. `engines` are the `InferenceSession` of each role; roles may share one."""
        manifest = bundle.manifest
        self._engines = engines
        self._model, self._limits, self._has_logits = manifest.model, manifest.limits, manifest.keep_logits
        self._is_quantized = manifest.quantization is not None
        self._logits = ScratchArray(np.float32)
        self.cache_dtype = np.dtype(ENGINE_FLOAT[manifest.compute_precision])

    @classmethod
    def open(cls, bundle: Bundle, num_threads: int | None = None) -> OnnxRuntimeSession:
        """Make the engines of all roles.

        Args:
            bundle: an opened bundle.
            num_threads: threads a step may use; None for all CPUs this process may run on.

        Raises:
            BundleError: the bundle is for another target, or an engine cannot be loaded or breaks the step contract.
            InvalidInputError: `num_threads` is not positive.
        """
        manifest = bundle.manifest
        if manifest.target is not Target.ONNXRUNTIME:
            raise BundleError(f"{bundle.path} was built for {manifest.target}; this session runs {Target.ONNXRUNTIME}")
        if num_threads is not None and num_threads < 1:
            raise InvalidInputError("num_threads", num_threads, "an integer of at least 1")
        threads = len(os.sched_getaffinity(0)) if num_threads is None else num_threads
        by_file: dict[str, Any] = {}
        engines: dict[Role, Any] = {}
        for role, engine in manifest.roles.items():
            if engine.file not in by_file:
                by_file[engine.file] = _load_engine(bundle, engine.file, threads)
            engines[role] = by_file[engine.file]
            _check_contract(bundle, role, engine.file, engines[role])
        return cls(bundle, engines)

    @property
    def model(self) -> ModelConfig:
        return self._model

    @property
    def limits(self) -> Limits:
        return self._limits

    @property
    def roles(self) -> frozenset[Role]:
        return frozenset(self._engines)

    @property
    def has_logits(self) -> bool:
        return self._has_logits

    def create_cache(self, batch_size: int, spare_rows: int = 0) -> BoundCache[np.ndarray, _Binding]:
        """Empty cache for `batch_size` rows, see `Session.create_cache`.

        Raises:
            InvalidInputError: the engines were built for fewer rows.
        """
        check_batch_size(batch_size, self._limits)
        model, capacity, num_rows = self._model, self._limits.cache_capacity, batch_size + spare_rows
        shape = (num_rows, model.num_key_value_heads, capacity, model.head_dim)
        layers = range(model.num_hidden_layers)
        # Pages of zeros cost nothing before they are written to.
        keys, values = ([np.zeros(shape, self.cache_dtype) for _ in layers] for _ in range(2))
        return BoundCache(self, keys, values, np.zeros(num_rows, np.int64), capacity, RecentSteps())

    def run(
        self,
        role: Role,
        input_ids: np.ndarray,
        cache: KVCache[Any],
        last_index: np.ndarray | None = None,
        layout: StepLayout | None = None,
    ) -> StepOutput:
        """Run one step, see `Session.run`.

        Raises:
            InvalidInputError: role, shapes, step length or cache do not fit this session, or the cache is full.
        """
        own, step = own_cache(cache, BoundCache, self), input_ids.shape[-1]
        shape = own.shape_of(role, self._launched(role, step, own))
        binding: _Binding = own.bindings.get(shape) or self._bind(shape, step, own)
        fill_inputs(binding, input_ids, cache, last_index, layout)
        binding.engine.run_with_iobinding(binding.io)
        return binding.output

    def _launched(self, role: Role, step: int, cache: KVCache[Any]) -> int:
        """Tokens that are run for a step of `step`: a lone token of `decode` gets another behind it, which nobody reads.

        ONNX Runtime multiplies a single row by other kernels, which sum in another order. With two rows and more, every row of
        a step is the same bit for bit however many there are, so `ar` and verification decide from the same logits. A row more
        costs little beside one; with several rows it is done only where a last bit can decide a rounding to few bits.
        """
        if role is not Role.DECODE or not (cache.batch_size == 1 or self._is_quantized):
            return step
        has_room = longest_row(cache) + _LEAST_ROWS <= cache.capacity
        return max(step, _LEAST_ROWS) if has_room else step

    def _bind(self, shape: StepShape, step: int, cache: BoundCache[np.ndarray, _Binding]) -> _Binding:
        """Allocate and bind the buffers of one step shape, of whose tokens the first `step` are asked for."""
        _, batch, role, launched = shape
        check_role_and_step(role, step, self._engines, self._limits)
        engine = self._engines[role]
        rows = 1 if role is Role.PREFILL else launched
        output = StepOutput(np.zeros((batch, rows), np.int64), np.zeros((batch, rows), np.float32))
        if self._has_logits:
            output.logits = self._logits.array((batch, rows, self._model.vocab_size))
        all_ids = np.zeros((batch, launched), np.int64)
        binding = _Binding(
            engine,
            engine.io_binding(),
            all_ids[:, :step],
            np.zeros(batch, np.int64),
            np.zeros(batch, np.int64) if role is Role.PREFILL else None,
            StepLayout.zeros(batch, step) if role.takes_layout else None,
            StepOutput(
                output.token[:, :step],
                output.confidence[:, :step],
                None if output.logits is None else output.logits[:, :step],
            ),
        )
        inputs = {contract.INPUT_IDS: all_ids, contract.CACHE_LENGTH: binding.cache_length}
        if binding.last_index is not None:
            inputs[contract.LAST_INDEX] = binding.last_index
        if binding.layout is not None:
            inputs |= layout_arrays(binding.layout)
        for name, array in inputs.items():
            binding.io.bind_ortvalue_input(name, _over(array))
        results = {contract.TOKEN: output.token, contract.CONFIDENCE: output.confidence, contract.LOGITS: output.logits}
        for name, result in results.items():
            if result is not None:
                binding.io.bind_ortvalue_output(name, _over(result))
        for layer in range(self._model.num_hidden_layers):
            for past, present, buffer in (
                (contract.past_key(layer), contract.present_key(layer), cache.keys[layer]),
                (contract.past_value(layer), contract.present_value(layer), cache.values[layer]),
            ):
                # One value for both sides: the update happens in place.
                value = _over(buffer)
                binding.io.bind_ortvalue_input(past, value)
                binding.io.bind_ortvalue_output(present, value)
        cache.bindings.put(shape, binding)
        return binding


def _over(array: np.ndarray) -> Any:
    """ONNX Runtime value over the memory of a contiguous array, which the caller keeps alive."""
    return ort.OrtValue.ortvalue_from_numpy(array)


def _load_engine(bundle: Bundle, file: str, num_threads: int) -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads = num_threads
    options.inter_op_num_threads = 1
    options.log_severity_level = _ERRORS_ONLY
    # Weights are named relative to the bundle, which only a model given as bytes can resolve.
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(bundle.path))
    for key, value in _SESSION_CONFIG.items():
        options.add_session_config_entry(key, value)
    try:
        content = (bundle.path / file).read_bytes()
        return ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    # ONNX Runtime's exceptions share no other base.
    except Exception as error:
        reason = str(error).strip().split("\n", 1)[0]
        raise BundleError(f"{file}: onnxruntime {ort.__version__} cannot load it ({reason})") from error


def _check_contract(bundle: Bundle, role: Role, file: str, engine: Any) -> None:
    """Compare the engine's tensor names with the step contract."""
    manifest = bundle.manifest
    wanted = step_contract(role, manifest.model, manifest.compute_precision, manifest.keep_logits)
    for kind, found, specs in (
        ("inputs", engine.get_inputs(), wanted.inputs),
        ("outputs", engine.get_outputs(), wanted.outputs),
    ):
        names = {spec.name for spec in specs}
        if {value.name for value in found} != names:
            raise BundleError(f"{file}: its {kind} are not those of role {role}; build the bundle again")

"""Session over AOTInductor packages on the CPU. A step copies the token ids in and runs; it creates its results.

Memory: packages hold no weights. Those are inputs, bound once to views of the one mapped weight file, so that all roles share
the same physical pages. Keys and values are written in place; what a step needs in between comes from torch's allocator.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nemodiff_trt.bundle import Bundle, mapped_tensors, tensor_over
from nemodiff_trt.bundle.package_metadata import INPUTS_KEY, OUTPUTS_KEY
from nemodiff_trt.config import ModelConfig
from nemodiff_trt.contract import ENGINE_FLOAT, Limits, step_contract
from nemodiff_trt.cpu_features import missing_features
from nemodiff_trt.errors import BundleError, InvalidInputError
from nemodiff_trt.runtime.bound_cache import BoundCache, own_cache
from nemodiff_trt.runtime.device_steps import DeviceStep, HostQueue, Work
from nemodiff_trt.runtime.kv_cache import KVCache
from nemodiff_trt.runtime.recent_steps import RecentSteps, StepShape
from nemodiff_trt.runtime.session import StepOutput
from nemodiff_trt.runtime.step_checks import check_batch_size, check_role_and_step, fill_inputs, layout_arrays
from nemodiff_trt.runtime.step_layout import StepLayout
from nemodiff_trt.vocabulary import Role, Target

Run = Callable[[list[Tensor]], list[Tensor]]


@dataclass(frozen=True, slots=True)
class _Engine:
    """A loaded package, and the weights that follow the inputs of the contract."""

    run: Run
    weights: tuple[Tensor, ...]


@dataclass(frozen=True, slots=True)
class _Binding:
    """Everything one step shape needs, bound once: arrays to copy a step into, and all inputs of the engine over them."""

    run: Run
    inputs: list[Tensor]
    input_ids: np.ndarray
    cache_length: np.ndarray
    last_index: np.ndarray | None
    layout: StepLayout | None


class InductorSession:
    """Runs the roles of a bundle built for the target inductor. Not safe for use from several threads at once."""

    def __init__(self, bundle: Bundle, engines: dict[Role, _Engine]) -> None:
        """Use `open`."""
        manifest = bundle.manifest
        self._engines = engines
        self._model, self._limits, self._has_logits = manifest.model, manifest.limits, manifest.keep_logits
        self.cache_dtype: torch.dtype = getattr(torch, ENGINE_FLOAT[manifest.compute_precision])

    @classmethod
    def open(cls, bundle: Bundle, num_threads: int | None = None) -> InductorSession:
        """Load the packages of all roles and map their weights.

        Args:
            bundle: an opened bundle.
            num_threads: threads a step may use. torch knows one number for the whole process, which is set; None leaves it.

        Raises:
            BundleError: the bundle is for another target or another CPU, or an engine cannot be loaded or breaks the step
                contract.
            InvalidInputError: `num_threads` is not positive.
        """
        manifest = bundle.manifest
        if manifest.target is not Target.INDUCTOR:
            raise BundleError(f"{bundle.path} was built for {manifest.target}; this session runs {Target.INDUCTOR}")
        if num_threads is not None and num_threads < 1:
            raise InvalidInputError("num_threads", num_threads, "an integer of at least 1")
        missing = missing_features(manifest.tool_versions["cpu"])
        if missing:
            raise BundleError(f"{bundle.path} was compiled for a CPU with {', '.join(missing)}; build it again on this machine")
        if num_threads is not None:
            torch.set_num_threads(num_threads)
        arrays = mapped_tensors(bundle.weights_path)
        stored = {name: tensor_over(arrays[name], layout.dtype) for name, layout in manifest.weights.items()}
        by_file: dict[str, Any] = {}
        engines: dict[Role, _Engine] = {}
        for role, engine in manifest.roles.items():
            if engine.file not in by_file:
                by_file[engine.file] = _load_package(bundle, engine.file)
            loader = by_file[engine.file].loader
            _check_contract(bundle, role, loader.get_metadata())
            engines[role] = _Engine(loader.run, tuple(stored[name] for name in engine.weights))
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

    def create_cache(self, batch_size: int, spare_rows: int = 0) -> BoundCache[Tensor, _Binding]:
        """Empty cache for `batch_size` rows, see `Session.create_cache`.

        Raises:
            InvalidInputError: the engines were built for fewer rows.
        """
        check_batch_size(batch_size, self._limits)
        model, capacity, num_rows = self._model, self._limits.cache_capacity, batch_size + spare_rows
        shape = (num_rows, model.num_key_value_heads, capacity, model.head_dim)
        layers = range(model.num_hidden_layers)
        # Pages of zeros cost nothing before they are written to.
        keys, values = ([torch.zeros(shape, dtype=self.cache_dtype) for _ in layers] for _ in range(2))
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
        binding = self._binding(role, input_ids.shape[-1], cache)
        fill_inputs(binding, input_ids, cache, last_index, layout)
        token, confidence, *others = binding.run(binding.inputs)
        return StepOutput(token.numpy(), confidence.numpy(), others[0].numpy() if self._has_logits else None)

    @property
    def queue(self) -> HostQueue:
        """Steps run at once."""
        return HostQueue()

    def device_step(self, role: Role, step: int, cache: KVCache[Any]) -> DeviceStep:
        """Bind a step to tensors that stay, see `DeviceSession`.

        Raises:
            InvalidInputError: role, step length or cache do not fit this session.
        """
        binding = self._binding(role, step, cache)
        token = torch.zeros((cache.batch_size, step), dtype=torch.int64)

        def launch() -> None:
            token.copy_(binding.run(binding.inputs)[0])

        return DeviceStep(binding.inputs[0], binding.inputs[1], token, launch, lambda: None)

    def capture(self, work: Work, steps: Sequence[DeviceStep]) -> Work:  # noqa: ARG002 - see `DeviceSession`
        """`work` itself: a CPU has no graphs."""
        return work

    def _binding(self, role: Role, step: int, cache: KVCache[Any]) -> _Binding:
        """Of one step shape on a cache that this session made."""
        own = own_cache(cache, BoundCache, self)
        shape = own.shape_of(role, step)
        found: _Binding = own.bindings.get(shape) or self._bind(shape, own)
        return found

    def _bind(self, shape: StepShape, cache: BoundCache[Tensor, _Binding]) -> _Binding:
        """Allocate the inputs of one step shape and line them up with caches and weights, in the order of the contract."""
        _, batch, role, step = shape
        check_role_and_step(role, step, self._engines, self._limits)
        engine = self._engines[role]
        own = [torch.zeros(shape, dtype=torch.int64) for shape in ((batch, step), (batch,), (batch,))]
        ids, lengths, last = (tensor.numpy() for tensor in own)
        inputs = own if role is Role.PREFILL else own[:2]
        layout = StepLayout.zeros(batch, step) if role.takes_layout else None
        if layout is not None:
            inputs += [torch.from_numpy(array) for array in layout_arrays(layout).values()]
        for layer in range(self._model.num_hidden_layers):
            inputs += [cache.keys[layer], cache.values[layer]]
        last_index = last if role is Role.PREFILL else None
        binding = _Binding(engine.run, [*inputs, *engine.weights], ids, lengths, last_index, layout)
        cache.bindings.put(shape, binding)
        return binding


def _load_package(bundle: Bundle, file: str) -> Any:
    try:
        # Single-threaded: no locks and no pool of streams around a step.
        return torch._inductor.aoti_load_package(str(bundle.path / file), run_single_threaded=True)  # noqa: SLF001
    # Not an archive, no package in it, or a library that does not link: the errors share no other base.
    except Exception as error:
        reason = str(error).strip().split("\n", 1)[0]
        raise BundleError(f"{file}: torch {torch.__version__} cannot load it ({reason})") from error


def _check_contract(bundle: Bundle, role: Role, metadata: dict[str, str]) -> None:
    """Compare the names and the order of a package's inputs and outputs with the step contract."""
    manifest = bundle.manifest
    engine, wanted = manifest.roles[role], step_contract(role, manifest.model, manifest.compute_precision, manifest.keep_logits)
    inputs = [*(spec.name for spec in wanted.inputs), *engine.weights]
    outputs = [spec.name for spec in wanted.outputs if spec.alias_of is None]
    for kind, key, names in (("inputs", INPUTS_KEY, inputs), ("outputs", OUTPUTS_KEY, outputs)):
        if metadata.get(key, "").split(" ") != names:
            raise BundleError(f"{engine.file}: its {kind} are not those of role {role}; build the bundle again")

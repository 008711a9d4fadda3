"""Where every tensor of a TensorRT step lives, worked out from the manifest alone: no engine, no torch, no GPU.

Five kinds of memory, each one allocation: weights (once for all roles), the cache (one for each batch), inputs and outputs of
a step and scratch (once, large enough for every step, because steps run one after the other). A binding is a place in one of
them, so that addresses never change while a session and a cache live, and a captured CUDA graph stays valid.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from nemodiff_trt import contract
from nemodiff_trt.bundle import Manifest, RoleEngine
from nemodiff_trt.contract import ITEM_BYTES, Limits, TensorSpec, step_contract
from nemodiff_trt.errors import BundleError
from nemodiff_trt.options import WeightStorage
from nemodiff_trt.runtime.step_checks import role_steps
from nemodiff_trt.vocabulary import Role

# IExecutionContext::setTensorAddress and setDeviceMemoryV2 ask for it.
ALIGNMENT_BYTES = 256
# Shorter prefill steps share one CUDA graph: below this many tokens a step costs what reading the weights costs.
MIN_PREFILL_STEP = 16


class Buffer(StrEnum):
    """The allocation a tensor is a part of."""

    WEIGHTS = "weights"
    CACHE = "cache"
    STEP_INPUT = "step input"
    STEP_OUTPUT = "step output"
    SCRATCH = "scratch"


@dataclass(frozen=True, slots=True)
class TensorBinding:
    """Place of one engine tensor: its bytes start `offset` bytes after the start of `buffer`."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    buffer: Buffer
    offset: int
    is_input: bool

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]

    @property
    def end(self) -> int:
        return self.offset + self.num_bytes


@dataclass(frozen=True, slots=True)
class StepKey:
    """What one CUDA graph is captured for, given a cache: B rows of S tokens in a role."""

    role: Role
    batch: int
    step: int


@dataclass(frozen=True, slots=True)
class StepPlan:
    """All bindings of one step, and the index of the optimisation profile that runs it."""

    key: StepKey
    profile: int
    bindings: tuple[TensorBinding, ...]

    def within(self, buffer: Buffer) -> tuple[TensorBinding, ...]:
        return tuple(binding for binding in self.bindings if binding.buffer is buffer)

    def num_bytes(self, buffer: Buffer) -> int:
        """How much of `buffer` this step touches."""
        return max((binding.end for binding in self.within(buffer)), default=0)

    def binding(self, name: str) -> TensorBinding:
        return next(binding for binding in self.bindings if binding.name == name)

    @property
    def result_names(self) -> tuple[str, ...]:
        """Outputs that go back to the host, in the order of the contract: token, confidence and, if kept, logits."""
        return tuple(binding.name for binding in self.bindings if binding.buffer is Buffer.STEP_OUTPUT)

    @property
    def result_bytes(self) -> int:
        """Bytes of the step output that go back to the host: all of it."""
        return self.num_bytes(Buffer.STEP_OUTPUT)


@dataclass(frozen=True, slots=True)
class DeviceMemory:
    """Bytes of GPU memory a session takes, with one cache.

    `engines` are the plan files, an upper bound of what they hold on the device. `activations` belong to the engines and are
    known once these are loaded.
    """

    weights: int
    engines: int
    cache: int
    step: int
    scratch: int
    activations: int = 0

    @property
    def total(self) -> int:
        return self.weights + self.engines + self.cache + self.step + self.scratch + self.activations


def choose_profile(engine: RoleEngine, batch: int, step: int) -> int:
    """Index of the narrowest profile that accepts the shape: the one compiled for the fewest others.

    Raises:
        BundleError: there is none.
    """
    if not engine.profiles:
        return 0
    accepting = []
    for index, profile in enumerate(engine.profiles):
        if profile.accepts(batch, step):
            num_shapes = (profile.max_batch - profile.min_batch + 1) * (profile.max_step - profile.min_step + 1)
            accepting.append((num_shapes, profile.max_batch * profile.max_step, index))
    if not accepting:
        raise BundleError(f"{engine.file}: no profile takes {batch} rows of {step} tokens; build the bundle again")
    return min(accepting)[-1]


def uncovered_shape(engine: RoleEngine, role: Role, limits: Limits) -> tuple[int, int] | None:
    """A shape (B, S) within the limits of the bundle that no profile of `role` accepts; None when there is none.

    Lowering B or S of the smallest such shape by one gives a shape that is covered or out of range, so it starts right behind
    the end of a profile or at one: few shapes have to be tried.
    """
    if not engine.profiles:
        return None
    steps = role_steps(role, limits)
    batch_sizes = {1, *(profile.max_batch + 1 for profile in engine.profiles)}
    step_sizes = {steps[0], *(profile.max_step + 1 for profile in engine.profiles)}
    for batch, step in sorted(itertools.product(batch_sizes, step_sizes)):
        is_possible = batch <= limits.max_batch_size and step in steps
        if is_possible and not any(profile.accepts(batch, step) for profile in engine.profiles):
            return batch, step
    return None


def launched_step(role: Role, step: int, room: int, limits: Limits) -> int:
    """Length of the step that is run for one of `step` tokens, of which there is `room` for in every row of the cache.

    Prompts have any length, and every length would be compiled for and captured. A causal step may be padded behind its last
    token, nothing reads what lies there, and prefill answers one row in any case: so it runs in powers of two.
    """
    if role is not Role.PREFILL:
        return step
    padded = min(max(MIN_PREFILL_STEP, 1 << (step - 1).bit_length()), limits.prefill_chunk)
    return padded if step <= padded <= room else step


def place_weights(manifest: Manifest) -> tuple[TensorBinding, ...]:
    """Places of all stored tensors that some role binds, each once, in the order of the manifest."""
    wanted = {name for engine in manifest.roles.values() for name in engine.weights}
    specs = [
        TensorSpec(name, layout.dtype, manifest.weight_shapes[name])
        for name, layout in manifest.weights.items()
        if name in wanted
    ]
    return _in_a_row(specs, Buffer.WEIGHTS, {}, is_input=True)


def place_cache(manifest: Manifest, batch: int) -> tuple[TensorBinding, ...]:
    """Places of keys and values of all layers, [B,G,K,D] each."""
    role = next(iter(manifest.roles))
    inputs = step_contract(role, manifest.model, manifest.compute_precision).inputs
    past = set(_past_names(manifest))
    specs = [spec for spec in inputs if spec.name in past]
    return _in_a_row(specs, Buffer.CACHE, {"B": batch, "K": manifest.limits.cache_capacity}, is_input=True)


def plan_step(manifest: Manifest, key: StepKey) -> StepPlan:
    """Bindings of one step.

    Raises:
        BundleError: no profile takes the shape, a weight is not stored or a scratch output has an axis of unknown size.
    """
    engine = manifest.roles[key.role]
    tensors = step_contract(key.role, manifest.model, manifest.compute_precision, manifest.keep_logits)
    sizes = {"B": key.batch, "S": key.step, "K": manifest.limits.cache_capacity}
    cache = {binding.name: binding for binding in place_cache(manifest, key.batch)}
    inputs = [spec for spec in tensors.inputs if spec.name not in cache]
    outputs = [spec for spec in tensors.outputs if spec.alias_of is None]
    aliases = [_renamed(cache[spec.alias_of], spec.name) for spec in tensors.outputs if spec.alias_of is not None]
    weights = {binding.name: binding for binding in place_weights(manifest)}
    missing = [name for name in engine.weights if name not in weights]
    if missing:
        raise BundleError(f"{engine.file}: its weight {missing[0]} is not stored in the bundle; build it again")
    # Nobody reads scratch outputs, so all of them may lie over each other.
    scratch = [_placed(spec, Buffer.SCRATCH, 0, sizes, is_input=False) for spec in engine.scratch]
    bindings = (
        *_in_a_row(inputs, Buffer.STEP_INPUT, sizes, is_input=True),
        *cache.values(),
        *(weights[name] for name in engine.weights),
        *_in_a_row(outputs, Buffer.STEP_OUTPUT, sizes, is_input=False),
        *aliases,
        *scratch,
    )
    return StepPlan(key, choose_profile(engine, key.batch, key.step), bindings)


def largest_steps(manifest: Manifest) -> tuple[StepPlan, ...]:
    """The plan of every role at the limits: no other step of the role needs more of any buffer."""
    limits = manifest.limits
    keys = (StepKey(role, limits.max_batch_size, role_steps(role, limits)[-1]) for role in manifest.roles)
    return tuple(plan_step(manifest, key) for key in keys)


def buffer_bytes(bindings: Iterable[TensorBinding]) -> int:
    """Size of the allocation that holds `bindings`, which lie in one buffer."""
    return max((binding.end for binding in bindings), default=0)


def predict_memory(manifest: Manifest, batch: int) -> DeviceMemory:
    """What a session with one cache of `batch` rows takes, activations of the engines left out."""
    steps = largest_steps(manifest)
    files = {engine.file for engine in manifest.roles.values()}

    def largest(buffer: Buffer) -> int:
        return max(plan.num_bytes(buffer) for plan in steps)

    return DeviceMemory(
        weights=buffer_bytes(place_weights(manifest)) if manifest.weight_storage is WeightStorage.SHARED else 0,
        engines=sum(manifest.files[file].num_bytes for file in files),
        cache=buffer_bytes(place_cache(manifest, batch)),
        step=largest(Buffer.STEP_INPUT) + largest(Buffer.STEP_OUTPUT),
        scratch=largest(Buffer.SCRATCH),
    )


def _past_names(manifest: Manifest) -> Iterable[str]:
    for layer in range(manifest.model.num_hidden_layers):
        yield contract.past_key(layer)
        yield contract.past_value(layer)


def _placed(spec: TensorSpec, buffer: Buffer, offset: int, sizes: dict[str, int], is_input: bool) -> TensorBinding:
    """`spec` with its letters replaced by `sizes`."""
    unknown = [axis for axis in spec.shape if isinstance(axis, str) and axis not in sizes]
    if unknown or spec.dtype not in ITEM_BYTES:
        raise BundleError(f"tensor {spec.name}: axis or dtype {[*unknown, spec.dtype][0]!r} is unknown; build the bundle again")
    shape = tuple(sizes[axis] if isinstance(axis, str) else axis for axis in spec.shape)
    return TensorBinding(spec.name, spec.dtype, shape, buffer, offset, is_input)


def _renamed(binding: TensorBinding, name: str) -> TensorBinding:
    """The output of another name in the place of an input."""
    return TensorBinding(name, binding.dtype, binding.shape, binding.buffer, binding.offset, is_input=False)


def _in_a_row(specs: Iterable[TensorSpec], buffer: Buffer, sizes: dict[str, int], is_input: bool) -> tuple[TensorBinding, ...]:
    """Bindings one behind the other, each aligned."""
    placed, offset = [], 0
    for spec in specs:
        binding = _placed(spec, buffer, offset, sizes, is_input)
        placed.append(binding)
        offset = -(-binding.end // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
    return tuple(placed)

"""A TensorRT module whose engines compute with the eager decoder, from and to the addresses they are given.

It is as strict as the real one about the order of calls, profiles, alignment and missing shapes or addresses, so a session that
works on it binds everything. Plans are JSON files, see `Plan`.
"""

from __future__ import annotations

import ctypes
import json
import math
from collections import Counter
from dataclasses import asdict, dataclass, field
from enum import Enum
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from nemodiff_trt import contract
from nemodiff_trt.bundle import Manifest, StepProfile
from nemodiff_trt.bundle.weights import split_sources
from nemodiff_trt.contract import TensorSpec, step_contract
from nemodiff_trt.model import LayoutTensors, TriModeDecoder, assemble_decoder
from nemodiff_trt.vocabulary import Role, Target
from support.host_device import ALIGNMENT, HostDevice

VERSION = "1.7.1.116"
ACTIVATION_BYTES = 4096
_ENGINE_TYPES = {"int64": "INT64", "float32": "FLOAT", "float16": "HALF", "bfloat16": "BF16", "bool": "BOOL"}
Strategy = Enum("Strategy", "STATIC USER_MANAGED")
Mode = Enum("Mode", "INPUT OUTPUT")
GraphStrategy = Enum("GraphStrategy", "DISABLED WHOLE_GRAPH_CAPTURE")
Specialization = Enum("Specialization", "LAZY EAGER NONE")


class Logger:
    """Base class of loggers."""

    INTERNAL_ERROR, ERROR, WARNING = range(3)


@dataclass(frozen=True, slots=True)
class Plan:
    """Content of a plan file."""

    role: Role
    profiles: tuple[StepProfile, ...]

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self)))

    @classmethod
    def read(cls, content: bytes) -> Plan:
        raw = json.loads(content)
        return cls(Role(raw["role"]), tuple(StepProfile(**profile) for profile in raw["profiles"]))


@dataclass
class Calls:
    """What sessions did with the module."""

    counts: Counter[str] = field(default_factory=Counter)
    # Bound addresses of each tensor name, over all engines.
    addresses: dict[str, set[int]] = field(default_factory=dict)


class FakeTensorRT:
    """Stands for the module. `fail` makes one call answer as it does on failure."""

    __version__ = VERSION
    ILogger = Logger
    ExecutionContextAllocationStrategy = Strategy
    TensorIOMode = Mode
    CudaGraphStrategy = GraphStrategy
    DynamicShapesKernelSpecializationStrategy = Specialization

    def __init__(self, manifest: Manifest, device: HostDevice, fail: str = "") -> None:
        self.manifest, self.device, self.fail = manifest, device, fail
        self.calls = Calls()
        self.kernel_blob = b""

    def Runtime(self, logger: Any) -> Any:  # noqa: N802
        return SimpleNamespace(deserialize_cuda_engine=lambda content: self._load(logger, content))

    def answer(self, call: str, value: Any, failed: Any) -> Any:
        self.calls.counts[call] += 1
        return failed if self.fail == call else value

    def _load(self, logger: Any, content: bytes) -> Any:
        try:
            plan = Plan.read(content)
        except ValueError:
            logger.log(Logger.WARNING, "only a warning")
            logger.log(Logger.ERROR, "bad magic\nmore of it")
            return None
        return self.answer("deserialize", FakeEngine(self, plan), None)


class FakeEngine:
    """Tensors of a role under the contract, weights and scratch outputs as the manifest lists them."""

    device_memory_size_v2 = ACTIVATION_BYTES

    def __init__(self, api: FakeTensorRT, plan: Plan) -> None:
        manifest = api.manifest
        facts = manifest.roles[plan.role]
        tensors = step_contract(plan.role, manifest.model, manifest.precision, manifest.keep_logits)
        self.api, self.plan = api, plan
        self.weights = {n: TensorSpec(n, manifest.weights[n].dtype, manifest.weight_shapes[n]) for n in facts.weights}
        self.inputs = {spec.name: spec for spec in tensors.inputs} | self.weights
        self.outputs = {spec.name: spec for spec in (*tensors.outputs, *facts.scratch)}
        self.specs = self.inputs | self.outputs
        self._decoders: dict[tuple[int, ...], TriModeDecoder] = {}

    @property
    def num_io_tensors(self) -> int:
        return len(self.specs)

    @property
    def num_optimization_profiles(self) -> int:
        return len(self.plan.profiles)

    def get_tensor_name(self, index: int) -> str:
        return list(self.specs)[index]

    def get_tensor_mode(self, name: str) -> Mode:
        return Mode.INPUT if name in self.inputs else Mode.OUTPUT

    def get_tensor_dtype(self, name: str) -> Any:
        return SimpleNamespace(name=self.api.answer("dtype", _ENGINE_TYPES[self.specs[name].dtype], "INT8"))

    def get_aliased_input_tensor(self, name: str) -> str | None:
        alias: str | None = self.api.answer("alias", self.specs[name].alias_of, None)
        return alias

    def create_runtime_config(self) -> FakeConfig:
        return FakeConfig(self.api)

    def create_execution_context(self, config: FakeConfig) -> FakeContext | None:
        assert config.strategy is Strategy.USER_MANAGED
        is_rtx = self.api.manifest.target is Target.TENSORRT_RTX
        assert config.cuda_graph_strategy is (GraphStrategy.DISABLED if is_rtx else None)
        assert config.dynamic_shapes_kernel_specialization_strategy is (Specialization.EAGER if is_rtx else None)
        context: FakeContext | None = self.api.answer("context", FakeContext(self), None)
        return context

    def decoder(self, addresses: dict[str, int]) -> TriModeDecoder:
        """The eager decoder over the weights at these addresses."""
        key = tuple(addresses[name] for name in self.weights)
        if key not in self._decoders:
            manifest = self.api.manifest
            stored = {n: tensor_at(addresses[n], spec.dtype, spec.shape).numpy() for n, spec in self.weights.items()}
            adapter = (manifest.adapter.rank, manifest.adapter.scale) if manifest.adapter else None
            state = split_sources(manifest.model, manifest.weights, stored)
            self._decoders[key] = assemble_decoder(manifest.model, state, manifest.limits.cache_capacity, adapter)
        return self._decoders[key]


class FakeConfig:
    """Runtime config and runtime cache in one."""

    def __init__(self, api: FakeTensorRT) -> None:
        self.api = api
        self.strategy = Strategy.STATIC
        self.cuda_graph_strategy: Any = None
        self.dynamic_shapes_kernel_specialization_strategy: Any = None

    def set_execution_context_allocation_strategy(self, strategy: Strategy) -> None:
        self.strategy = strategy

    def create_runtime_cache(self) -> FakeConfig:
        return self

    def set_runtime_cache(self, _: FakeConfig) -> bool:
        return bool(self.api.answer("runtime_cache", True, False))

    def deserialize(self, blob: bytes) -> bool:
        self.api.kernel_blob = blob if blob.startswith(b"kernels") else b""
        return bool(self.api.kernel_blob)

    def serialize(self) -> bytes:
        return self.api.kernel_blob or b"kernels of %d contexts" % self.api.calls.counts["context"]


class FakeContext:
    """Refuses what the real one refuses; wrong use that the real one does not notice fails an assertion."""

    def __init__(self, engine: FakeEngine) -> None:
        self.engine, self.api = engine, engine.api
        self.profile: StepProfile | None = None
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.activations = 0

    def set_optimization_profile_async(self, index: int, stream: int) -> bool:
        assert stream == HostDevice.stream_handle
        self.profile, self.shapes = self.engine.plan.profiles[index], {}
        return bool(self.api.answer("profile", True, False))

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        assert self.profile is not None, "a profile comes first"
        sizes = self._sizes(name, shape)
        batch, step = sizes.get("B", self.profile.min_batch), sizes.get("S", self.profile.min_step)
        if sizes.get("K", self._capacity) != self._capacity or not self.profile.accepts(batch, step):
            return False
        self.shapes[name] = shape
        return bool(self.api.answer("shape", True, False))

    def set_tensor_address(self, name: str, memory: int) -> bool:
        if name not in self.engine.specs or memory % ALIGNMENT:
            return False
        self.addresses[name] = memory
        self.api.calls.addresses.setdefault(name, set()).add(memory)
        return bool(self.api.answer("address", True, False))

    def set_device_memory(self, memory: int, size: int) -> None:
        assert memory % ALIGNMENT == 0
        assert size >= self.engine.device_memory_size_v2
        self.activations = memory

    def infer_shapes(self) -> list[str]:
        dynamic = [name for name in self.engine.inputs if name not in self.engine.weights]
        missing = [name for name in dynamic if name not in self.shapes]
        return missing if self.api.fail != "infer" else dynamic

    def is_stream_capturable(self, _: int) -> bool:
        return bool(self.api.answer("capturable", True, False))

    def execute_async_v3(self, stream: int) -> bool:
        assert stream == HostDevice.stream_handle
        assert self.addresses.keys() == self.engine.specs.keys(), "every tensor has an address"
        assert not self.infer_shapes()
        assert self.activations
        if not self.api.answer("execute", True, False):
            return False
        # A graph keeps the addresses and shapes of its capture, whatever the context is told later.
        shapes, addresses, activations = dict(self.shapes), dict(self.addresses), self.activations
        self.api.device.enqueue(lambda: self._compute(shapes, addresses, activations))
        return True

    @property
    def _capacity(self) -> int:
        return self.api.manifest.limits.cache_capacity

    def _sizes(self, name: str, shape: tuple[int, ...]) -> dict[str, int]:
        """Values of the letters in the shape of an input."""
        axes = self.engine.inputs[name].shape
        assert len(axes) == len(shape)
        assert all(axis == extent for axis, extent in zip(axes, shape, strict=True) if not isinstance(axis, str))
        return {axis: extent for axis, extent in zip(axes, shape, strict=True) if isinstance(axis, str)}

    def _compute(self, shapes: dict[str, tuple[int, ...]], addresses: dict[str, int], activations: int) -> None:
        batch, step = shapes[contract.INPUT_IDS]
        sizes = {"B": batch, "S": step, "K": self._capacity}
        at = {
            name: tensor_at(addresses[name], spec.dtype, tuple(sizes.get(str(axis), axis) for axis in spec.shape))  # type: ignore[misc]
            for name, spec in self.engine.specs.items()
        }
        role, model = self.engine.plan.role, self.api.manifest.model
        layers = range(model.num_hidden_layers)
        for layer in layers:
            for past, present in ((contract.past_key, contract.present_key), (contract.past_value, contract.present_value)):
                assert addresses[past(layer)] == addresses[present(layer)], "caches are updated in place"
        logits, keys, values = self.engine.decoder(addresses)(
            at[contract.INPUT_IDS].clone(),
            at[contract.CACHE_LENGTH].clone(),
            [at[contract.past_key(layer)] for layer in layers],
            [at[contract.past_value(layer)] for layer in layers],
            causal=role.is_causal,
            use_adapter=role.uses_adapter,
            layout=LayoutTensors(*(at[name].clone() for name in contract.LAYOUT)) if role.takes_layout else None,
        )
        if role is Role.PREFILL:
            logits = logits[torch.arange(batch), at[contract.LAST_INDEX]][:, None]
        # What the engine needs for itself it fills with rubbish, first of all: it must not lie over anything that counts.
        for name in self.engine.outputs.keys() - {spec.name for spec in self._promised()}:
            at[name].fill_(float("nan"))
        tensor_at(activations, "uint8", (ACTIVATION_BYTES,)).fill_(255)
        token, confidence = torch.ops.nemodiff.decision_head(logits, model.mask_token_id)
        at[contract.TOKEN].copy_(token)
        at[contract.CONFIDENCE].copy_(confidence)
        if contract.LOGITS in at:
            at[contract.LOGITS].copy_(logits)
        for layer in layers:
            at[contract.present_key(layer)].copy_(keys[layer])
            at[contract.present_value(layer)].copy_(values[layer])

    def _promised(self) -> tuple[TensorSpec, ...]:
        manifest = self.api.manifest
        return step_contract(self.engine.plan.role, manifest.model, manifest.precision, manifest.keep_logits).outputs


def tensor_at(address: int, dtype: str, shape: tuple[int, ...]) -> Tensor:
    """Tensor over memory that the caller of an engine gave it."""
    kind: torch.dtype = getattr(torch, dtype)
    content = (ctypes.c_char * (math.prod(shape) * kind.itemsize)).from_address(address)
    return torch.frombuffer(content, dtype=kind).reshape(shape)

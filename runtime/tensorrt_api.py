"""The part of the TensorRT Python API that sessions use, as protocols.

`tensorrt_rtx` and `tensorrt` offer the same classes and carry no types. Code here sees an engine or a context through these
protocols only, so the type checker refuses a misspelt member, and a test compares every member with the installed module:
together they find a wrong name without a GPU.
"""

from __future__ import annotations

import importlib
from typing import Any, Protocol, cast

from nemodiff_trt.vocabulary import Target

MODULES: dict[Target, str] = {Target.TENSORRT_RTX: "tensorrt_rtx", Target.TENSORRT: "tensorrt"}
# Stored dtype -> name of `DataType`.
DATA_TYPES = {
    "float32": "FLOAT",
    "float16": "HALF",
    "bfloat16": "BF16",
    "float8_e4m3fn": "FP8",
    "float4_e2m1fn_x2": "FP4",
    "int64": "INT64",
    "int32": "INT32",
    "int8": "INT8",
    "uint8": "UINT8",
    "bool": "BOOL",
}


class RuntimeCache(Protocol):
    """Kernels compiled on this machine; TensorRT-RTX only."""

    def deserialize(self, blob: bytes, /) -> bool: ...

    def serialize(self) -> Any: ...


class RuntimeConfig(Protocol):
    """How an execution context is made."""

    def set_execution_context_allocation_strategy(self, strategy: Any, /) -> None: ...


class RtxRuntimeConfig(RuntimeConfig, Protocol):
    """What only TensorRT-RTX, which compiles kernels when a context first meets a shape, can be told."""

    cuda_graph_strategy: Any
    dynamic_shapes_kernel_specialization_strategy: Any

    def create_runtime_cache(self) -> RuntimeCache: ...

    def set_runtime_cache(self, cache: RuntimeCache, /) -> bool: ...


class ExecutionContext(Protocol):
    """One set of shapes and addresses of an engine."""

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int, /) -> bool: ...

    def set_input_shape(self, name: str, shape: tuple[int, ...], /) -> bool: ...

    def set_tensor_address(self, name: str, memory: int, /) -> bool: ...

    def set_device_memory(self, memory: int, size: int, /) -> None: ...

    def infer_shapes(self) -> list[str]: ...

    def execute_async_v3(self, stream_handle: int, /) -> bool: ...


class RtxExecutionContext(ExecutionContext, Protocol):
    """What only TensorRT-RTX tells."""

    def is_stream_capturable(self, stream: int, /) -> bool: ...


class Engine(Protocol):
    """A deserialised plan."""

    @property
    def num_io_tensors(self) -> int: ...

    @property
    def num_optimization_profiles(self) -> int: ...

    @property
    def device_memory_size_v2(self) -> int: ...

    def get_tensor_name(self, index: int, /) -> str: ...

    def get_tensor_mode(self, name: str, /) -> Any: ...

    def get_tensor_dtype(self, name: str, /) -> Any: ...

    def create_runtime_config(self) -> RuntimeConfig: ...

    def create_execution_context(self, runtime_config: RuntimeConfig, /) -> ExecutionContext | None: ...


class CacheEngine(Engine, Protocol):
    """Came with the layer that updates a cache in place, after TensorRT 10.13."""

    def get_aliased_input_tensor(self, name: str, /) -> str | None: ...


class Runtime(Protocol):
    """Loads plans."""

    def deserialize_cuda_engine(self, serialized_engine: bytes, /) -> CacheEngine | None: ...


class Severity(Protocol):
    """Of a message; the levels are members of `ILogger` itself."""

    INTERNAL_ERROR: Any
    ERROR: Any


class AllocationStrategies(Protocol):
    """Who gives a context its memory."""

    USER_MANAGED: Any


class TensorModes(Protocol):
    """Direction of an engine's tensor."""

    INPUT: Any


class CudaGraphStrategies(Protocol):
    """Whether TensorRT-RTX captures by itself."""

    DISABLED: Any


class SpecializationStrategies(Protocol):
    """When TensorRT-RTX compiles kernels for a shape."""

    EAGER: Any


class Api(Protocol):
    """The module, `tensorrt_rtx` or `tensorrt`. `ILogger` is a class to derive from."""

    __version__: str
    ILogger: Any
    ExecutionContextAllocationStrategy: AllocationStrategies
    TensorIOMode: TensorModes

    def Runtime(self, logger: Any, /) -> Runtime: ...  # noqa: N802 - a class of the module


class RtxApi(Api, Protocol):
    """Names that only `tensorrt_rtx` has."""

    CudaGraphStrategy: CudaGraphStrategies
    DynamicShapesKernelSpecializationStrategy: SpecializationStrategies


# Class of the module -> what is used of it.
USED_CLASSES: dict[str, type] = {
    "ICudaEngine": Engine,
    "IExecutionContext": ExecutionContext,
    "IRuntimeConfig": RuntimeConfig,
    "Runtime": Runtime,
    "ILogger": Severity,
    "ExecutionContextAllocationStrategy": AllocationStrategies,
    "TensorIOMode": TensorModes,
}
RTX_CLASSES: dict[str, type] = {
    "ICudaEngine": CacheEngine,
    "IExecutionContext": RtxExecutionContext,
    "IRuntimeConfig": RtxRuntimeConfig,
    "IRuntimeCache": RuntimeCache,
    "CudaGraphStrategy": CudaGraphStrategies,
    "DynamicShapesKernelSpecializationStrategy": SpecializationStrategies,
}


def load_api(target: Target) -> Api:
    """Import the module of `target`, which loads its shared libraries.

    Raises:
        ImportError: it is not installed.
    """
    return cast(Api, importlib.import_module(MODULES[target]))

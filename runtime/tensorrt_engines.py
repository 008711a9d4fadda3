"""Load the plans of a bundle, hold them against the step contract, and make execution contexts."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from nemodiff_trt.bundle import Bundle, Manifest
from nemodiff_trt.contract import TensorSpec, step_contract
from nemodiff_trt.errors import BundleError
from nemodiff_trt.runtime.kernel_cache import KernelCache
from nemodiff_trt.runtime.tensorrt_api import (
    DATA_TYPES,
    Api,
    CacheEngine,
    ExecutionContext,
    RtxApi,
    RtxExecutionContext,
    RtxRuntimeConfig,
    Runtime,
    RuntimeConfig,
)
from nemodiff_trt.vocabulary import Role, Target


class Engines:
    """The deserialised plans of a bundle. Roles may share one; each file is loaded once."""

    def __init__(self, bundle: Bundle, api: Api, kernels: Path | None) -> None:
        """Load and check all of them.

        Args:
            bundle: of a TensorRT target.
            api: its module.
            kernels: file of the kernel cache, TensorRT-RTX only.

        Raises:
            BundleError: a plan cannot be loaded here or breaks the step contract.
        """
        self._manifest = bundle.manifest
        self._api = api
        # All objects of the API report to it, so it must live as long as they do.
        self._log = _error_log(api)
        self._runtime: Runtime = api.Runtime(self._log)
        self._kernels = KernelCache(kernels)
        self._by_file: dict[str, CacheEngine] = {}
        self._configs: dict[str, RuntimeConfig] = {}
        for role, engine in self._manifest.roles.items():
            if engine.file not in self._by_file:
                self._by_file[engine.file] = self._load(bundle, engine.file)
            _check_engine(api, self._manifest, role, self._by_file[engine.file])

    @property
    def activation_bytes(self) -> int:
        """Device memory any context needs while it runs. Steps run one after the other, so contexts can share it."""
        # Of all profiles: set_device_memory wants no less, whichever profile is in use.
        return max(engine.device_memory_size_v2 for engine in self._by_file.values())

    def create_context(self, role: Role) -> ExecutionContext:
        """A context that waits for profile, shapes, addresses and device memory.

        Raises:
            BundleError: the device cannot give one.
        """
        file = self._manifest.roles[role].file
        if file not in self._configs:
            self._configs[file] = self._configure(self._by_file[file])
        context = self._by_file[file].create_execution_context(self._configs[file])
        if context is None:
            raise self.failure(role, "no execution context")
        return context

    def _configure(self, engine: CacheEngine) -> RuntimeConfig:
        """How contexts of one engine are made. It refers to the kernel cache, so it must live as long as they do."""
        config = engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(self._api.ExecutionContextAllocationStrategy.USER_MANAGED)
        if self._manifest.target is Target.TENSORRT_RTX:
            api, rtx_config = cast(RtxApi, self._api), cast(RtxRuntimeConfig, config)
            # Sessions capture the whole step, copies included. A capture must hold the final kernels: lazily compiled ones
            # would be replaced later, and the graph would go on launching the slow ones.
            rtx_config.cuda_graph_strategy = api.CudaGraphStrategy.DISABLED
            rtx_config.dynamic_shapes_kernel_specialization_strategy = api.DynamicShapesKernelSpecializationStrategy.EAGER
            self._kernels.attach(rtx_config)
        return config

    def check_capturable(self, role: Role, context: ExecutionContext, stream_handle: int) -> None:
        """Refuse a context whose work cannot become a CUDA graph. TensorRT only finds out while it is captured.

        Raises:
            BundleError: says how to do without graphs.
        """
        if self._manifest.target is not Target.TENSORRT_RTX:
            return
        if not cast(RtxExecutionContext, context).is_stream_capturable(stream_handle):
            raise self.failure(role, "its work cannot be captured as a CUDA graph, open the session with cuda_graphs=False")

    def save_kernels(self) -> None:
        """Keep newly compiled kernels for the next start."""
        self._kernels.save()

    def failure(self, role: Role, what: str) -> BundleError:
        """The error that says what went wrong with the engine of a role, and why as far as TensorRT told."""
        reason = f" ({self._log.last})" if self._log.last else ""
        return BundleError(f"{self._manifest.roles[role].file}: role {role}: {what}{reason}")

    def _load(self, bundle: Bundle, file: str) -> CacheEngine:
        engine = self._runtime.deserialize_cuda_engine((bundle.path / file).read_bytes())
        if engine is None:
            name = f"{self._manifest.target} {self._api.__version__}"
            raise BundleError(f"{file}: {name} cannot load it ({self._log.last or 'no reason given'})")
        return engine


def _error_log(api: Api) -> Any:
    """A logger that keeps the last error. TensorRT's own one writes to standard output, where answers go."""

    class ErrorLog(api.ILogger):  # type: ignore[misc, name-defined]
        """`last` is the first line of the newest error, empty before there is one."""

        def __init__(self) -> None:
            api.ILogger.__init__(self)
            self.last = ""

        def log(self, severity: Any, message: str) -> None:
            if severity in (api.ILogger.INTERNAL_ERROR, api.ILogger.ERROR):
                self.last = message.strip().split("\n", 1)[0]

    return ErrorLog()


def _check_engine(api: Api, manifest: Manifest, role: Role, engine: CacheEngine) -> None:
    """Compare names, directions, dtypes, aliasing and the number of profiles with what the manifest promises."""
    facts = manifest.roles[role]
    tensors = step_contract(role, manifest.model, manifest.compute_precision, manifest.keep_logits)
    weights = tuple(TensorSpec(name, manifest.weights[name].dtype, manifest.weight_shapes[name]) for name in facts.weights)
    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    inputs = {name for name in names if engine.get_tensor_mode(name) == api.TensorIOMode.INPUT}
    for kind, found, specs in (
        ("inputs", inputs, (*tensors.inputs, *weights)),
        ("outputs", set(names) - inputs, (*tensors.outputs, *facts.scratch)),
    ):
        if found != {spec.name for spec in specs}:
            raise BundleError(f"{facts.file}: its {kind} are not those of role {role}; build the bundle again")
        for spec in specs:
            dtype = engine.get_tensor_dtype(spec.name).name
            if dtype != DATA_TYPES.get(spec.dtype):
                raise BundleError(f"{facts.file}: {spec.name} is {dtype}, not {spec.dtype}; build the bundle again")
    for spec in tensors.outputs:
        # An output that is not the input's own memory would leave the cache as it was.
        if spec.alias_of is not None and engine.get_aliased_input_tensor(spec.name) != spec.alias_of:
            raise BundleError(f"{facts.file}: {spec.name} does not update {spec.alias_of} in place; build the bundle again")
    found_profiles, wanted_profiles = engine.num_optimization_profiles, max(1, len(facts.profiles))
    if found_profiles != wanted_profiles:
        raise BundleError(f"{facts.file}: has {found_profiles} profiles, not {wanted_profiles}; build the bundle again")

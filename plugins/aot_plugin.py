"""Triton kernels as plugins of the full TensorRT: their machine code becomes part of the engine, no Python runs with it.

API: `tensorrt.plugin` (quickly deployable plugins) of TensorRT 10.13 and 11: `register` describes a plugin's tensors,
`aot_impl` gives kernel, launch and numbers. A plugin is one kernel, whose parameters are the input tensors, 32-bit integers and
the output tensors, in this order.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import GenericAlias
from typing import Any

from nemodiff_trt.errors import LoweringError
from nemodiff_trt.plugins.compile_kernels import compile_for
from nemodiff_trt.plugins.network_emitter import NetworkEmitter, NetworkTensor
from nemodiff_trt.plugins.triton_build import KernelBuild

NAMESPACE = "nemodiff"
# Of CUDA 12.9, the first that knows SM121. Triton writes a newer one, which older drivers do not read.
_PTX_VERSION = 88
_WARP = 32
_ENTRY = re.compile(r"(\.visible \.entry (\w+)\()(.*?)(\n\))", re.DOTALL)


@dataclass(frozen=True, slots=True)
class KernelLaunch:
    """A configuration, its grid along x, and the numbers between its inputs and outputs: integers or shape expressions."""

    build: KernelBuild
    grid: Any
    numbers: Sequence[Any]


@dataclass(frozen=True, slots=True)
class AotPlugin:
    """One kernel as a plugin.

    Attributes:
        name: within `NAMESPACE`.
        inputs: names of the input tensors.
        attributes: names of integers fixed when the network is written.
        num_outputs: of it.
        describe: takes the API module, descriptions of the inputs and the attributes by name; returns (shape, dtype) of every
            output, the shape made of shape expressions and integers.
        launch: takes the same; how the kernel runs.
    """

    name: str
    inputs: tuple[str, ...]
    attributes: tuple[str, ...]
    num_outputs: int
    describe: Callable[[Any, Sequence[Any], dict[str, int]], Sequence[tuple[tuple[Any, ...], Any]]]
    launch: Callable[[Any, Sequence[Any], dict[str, int]], KernelLaunch]

    def add(self, emit: NetworkEmitter, inputs: Sequence[NetworkTensor], **attributes: int) -> tuple[NetworkTensor, ...]:
        """Add the plugin to a network, registered with the API at its first use. Returns the outputs.

        Raises:
            LoweringError: the network is for a target without plugins.
        """
        if emit.plugin_sm is None:
            raise LoweringError(f"{emit.api.__name__} has no plugins, {self.name} needs them")
        register(emit.api, self)
        define = getattr(getattr(emit.api.plugin.op, NAMESPACE), self.name)
        layer = emit.network.add_plugin(define(*inputs, **attributes, sm=emit.plugin_sm), aot=True)
        return tuple(layer.get_output(index) for index in range(self.num_outputs))


def triton_type(api: Any, dtype: Any) -> str:
    """Triton's name of a float type of the API."""
    return {api.bfloat16: "bf16", api.float16: "fp16", api.float32: "fp32"}[dtype]


def register(api: Any, plugin: AotPlugin) -> None:
    """Make the API know `plugin`; it keeps that for the rest of the process.

    Args:
        api: `tensorrt` with its submodule `plugin` imported.
        plugin: what to register.
    """
    namespace = getattr(api.plugin.op, NAMESPACE, None)
    if namespace is not None and hasattr(namespace, plugin.name):
        return
    identifier, num_inputs = f"{NAMESPACE}::{plugin.name}", len(plugin.inputs)
    attributes = (*plugin.attributes, "sm")

    def describe(*values: Any) -> tuple[Any, ...]:
        found = plugin.describe(api, values[:num_inputs], dict(zip(attributes, values[num_inputs:], strict=True)))
        return tuple(api.plugin.from_shape_expr(tuple(shape), dtype) for shape, dtype in found)

    def implement(*values: Any) -> tuple[str, str, Any, Any]:
        # Behind the attributes come descriptions of the outputs and a tactic, of which there is one.
        named = dict(zip(attributes, values[num_inputs : num_inputs + len(attributes)], strict=True))
        return _implementation(api, plugin, values[:num_inputs], named)

    # The API reads names and types off the signatures.
    parts = api.plugin
    parameters = {**dict.fromkeys(plugin.inputs, parts.TensorDesc), **dict.fromkeys(attributes, int)}
    outputs = GenericAlias(tuple, (parts.TensorDesc,) * plugin.num_outputs)
    _sign(describe, parameters, outputs)
    own = {"outputs": outputs, "tactic": int}
    _sign(implement, parameters | own, GenericAlias(tuple, (str, str, parts.KernelLaunchParams, parts.SymExprs)))
    # By keyword as well as by position: the API calls the first in one way and the second in the other.
    parts.register(identifier)(_by_name(describe))
    parts.aot_impl(identifier)(implement)


def _sign(function: Any, parameters: dict[str, Any], returns: Any) -> None:
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    named = [inspect.Parameter(name, kind, annotation=annotation) for name, annotation in parameters.items()]
    function.__signature__ = inspect.Signature(named, return_annotation=returns)


def _by_name(function: Any) -> Any:
    """`function` of positional arguments, called as its signature says."""
    signature = function.__signature__

    def call(*values: Any, **named: Any) -> Any:
        return function(*signature.bind(*values, **named).arguments.values())

    call.__signature__ = signature  # type: ignore[attr-defined]
    return call


def _implementation(
    api: Any, plugin: AotPlugin, inputs: Sequence[Any], attributes: dict[str, int]
) -> tuple[str, str, Any, Any]:
    launched = plugin.launch(api, inputs, attributes)
    build, parts = launched.build, api.plugin
    compiled = compile_for(build, attributes["sm"], _PTX_VERSION)
    launch = parts.KernelLaunchParams()
    launch.grid_x = launched.grid
    launch.block_x = build.num_warps * _WARP
    launch.shared_mem = compiled.metadata.shared
    numbers = parts.SymIntExprs(len(launched.numbers))
    for index, number in enumerate(launched.numbers):
        numbers[index] = parts.SymInt32(number)
    return compiled.metadata.name, without_scratch(compiled.asm["ptx"], len(build.types)), launch, numbers


def without_scratch(ptx: str, num_parameters: int) -> str:
    """PTX of a kernel that takes only the first `num_parameters` of its parameters.

    Triton appends two addresses of scratch memory, used or not, and launches them itself; TensorRT knows nothing of them.

    Raises:
        LoweringError: there is not one kernel, or it uses what would be cut off.
    """
    entries = _ENTRY.findall(ptx)
    if len(entries) != 1:
        raise LoweringError(f"{len(entries)} kernels in the PTX of a plugin, one is taken")
    begin, name, declared, end = entries[0]
    parameters = declared.split(",")
    for index in range(num_parameters, len(parameters)):
        # Once where it is declared.
        if len(re.findall(rf"\b{name}_param_{index}\b", ptx)) > 1:
            raise LoweringError(f"{name} needs scratch memory, which a plugin does not get")
    return ptx.replace(begin + declared + end, begin + ",".join(parameters[:num_parameters]) + end)

"""A stand-in for `tensorrt` and its submodule `plugin`, as strict as those of TensorRT 11.4 about signatures and types.

Plugins of a network are run on tensors of the CPU: grid and numbers are evaluated for the shapes at hand, and the kernel is
launched with its parameters in the order in which TensorRT binds them: inputs, numbers, outputs.
"""

from __future__ import annotations

import inspect
import math
import typing
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

_TORCH = {
    "bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32, "int32": torch.int32, "int64": torch.int64,
}  # fmt: skip


class Expression:
    """A number known when a step runs: a function of the shapes of a plugin's inputs."""

    def __init__(self, value: Any = None) -> None:
        self.evaluate: Callable[[list[tuple[int, ...]]], int]
        if isinstance(value, Expression):
            self.evaluate = value.evaluate
        elif callable(value):
            self.evaluate = value
        else:
            assert type(value) is int, f"{value!r} is no 32-bit integer"
            self.evaluate = lambda _: value

    def __mul__(self, other: Any) -> Expression:
        right = Expression(other)
        return Expression(lambda shapes: self.evaluate(shapes) * right.evaluate(shapes))


class SymInt32(Expression):
    pass


class SymExprs:
    """A fixed number of expressions."""

    def __init__(self, length: int) -> None:
        self.content: list[Any] = [None] * length

    def __setitem__(self, index: int, value: Any) -> None:
        assert isinstance(value, SymInt32), "numbers of a kernel are 32-bit integers"
        self.content[index] = value


class SymIntExprs(SymExprs):
    pass


@dataclass
class TensorDesc:
    shape_expr: tuple[Expression, ...]
    dtype: str


class KernelLaunchParams:
    def __init__(self) -> None:
        names = ("grid_x", "grid_y", "grid_z", "block_x", "block_y", "block_z", "shared_mem")
        self.__dict__.update({name: SymInt32(0 if name == "shared_mem" else 1) for name in names})

    def __setattr__(self, name: str, value: Any) -> None:
        assert name in self.__dict__, f"a launch has no {name}"
        self.__dict__[name] = SymInt32(value)


def from_shape_expr(shape: tuple[Any, ...], dtype: str) -> TensorDesc:
    assert isinstance(shape, tuple)
    return TensorDesc(tuple(Expression(extent) for extent in shape), dtype)


@dataclass(eq=False)
class NetworkTensor:
    """Tensor of a network."""

    shape: tuple[int, ...]
    dtype: str


@dataclass
class Definition:
    """One registered plugin."""

    inputs: list[str]
    attributes: list[str]
    num_outputs: int
    describe: Callable[..., Any]
    implement: Callable[..., Any] | None = None

    def __call__(
        self, *tensors: NetworkTensor, **attributes: Any
    ) -> tuple[Definition, tuple[NetworkTensor, ...], dict[str, Any]]:
        assert all(len(tensor.shape) > 0 and tensor.dtype is not None for tensor in tensors)
        assert len(tensors) == len(self.inputs)
        assert list(attributes) == self.attributes, "attributes come in the order of the registration"
        assert all(type(value) is int for value in attributes.values())
        return self, tensors, attributes


def _check_signature(function: Any, last: list[str]) -> tuple[list[str], list[str], Any]:
    signature = inspect.signature(function)
    parameters = list(signature.parameters.values())
    names = [parameter.name for parameter in parameters]
    if last:
        assert names[-len(last) :] == last
        parameters = parameters[: -len(last)]
    assert all(p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD for p in parameters)
    inputs = [p.name for p in parameters if p.annotation is TensorDesc]
    attributes = [p.name for p in parameters if p.annotation is int]
    assert inputs + attributes == [p.name for p in parameters], "tensors come before attributes"
    return inputs, attributes, signature.return_annotation


class PluginModule:
    """`tensorrt.plugin`."""

    TensorDesc, KernelLaunchParams, SymInt32 = TensorDesc, KernelLaunchParams, SymInt32
    SymExprs, SymIntExprs = SymExprs, SymIntExprs
    from_shape_expr = staticmethod(from_shape_expr)

    def __init__(self) -> None:
        self.op = SimpleNamespace()
        self._known: dict[str, Definition] = {}

    def register(self, identifier: str) -> Callable[[Any], Any]:
        assert identifier not in self._known, "a plugin is registered once"
        namespace, name = identifier.split("::")

        def decorate(function: Any) -> Any:
            inputs, attributes, returns = _check_signature(function, [])
            assert typing.get_origin(returns) is tuple
            assert set(typing.get_args(returns)) == {TensorDesc}
            definition = Definition(inputs, attributes, len(typing.get_args(returns)), function)
            self._known[identifier] = definition
            if not hasattr(self.op, namespace):
                setattr(self.op, namespace, SimpleNamespace())
            setattr(getattr(self.op, namespace), name, definition)
            return function

        return decorate

    def aot_impl(self, identifier: str) -> Callable[[Any], Any]:
        definition = self._known[identifier]

        def decorate(function: Any) -> Any:
            inputs, attributes, returns = _check_signature(function, ["outputs", "tactic"])
            assert (inputs, attributes) == (definition.inputs, definition.attributes)
            types = typing.get_args(returns)
            assert set(types[:2]) <= {str, bytes}
            assert issubclass(types[2], KernelLaunchParams)
            assert issubclass(types[3], SymExprs)
            definition.implement = function
            return function

        return decorate


class PluginLayer:
    """A plugin in a network: described and compiled as it is added."""

    def __init__(self, definition: Definition, inputs: tuple[NetworkTensor, ...], attributes: dict[str, int]) -> None:
        self.definition, self.inputs = definition, inputs
        described = [
            TensorDesc(tuple(Expression(lambda shapes, i=i, a=a: shapes[i][a]) for a in range(len(tensor.shape))), tensor.dtype)
            for i, tensor in enumerate(inputs)
        ]
        # By keyword here, by position below, as the real module does.
        self.described = definition.describe(*described, **attributes)
        assert definition.implement is not None
        self.kernel, self.ptx, self.launch, self.numbers = definition.implement(
            *described, *attributes.values(), self.described, 0
        )
        self.outputs = [NetworkTensor((-1,) * len(desc.shape_expr), desc.dtype) for desc in self.described]

    def get_output(self, index: int) -> NetworkTensor:
        return self.outputs[index]

    def run(self, tensors: list[Tensor], launcher: Callable[..., list[Any]]) -> list[Tensor]:
        """Results for these inputs. `launcher` takes the kernel's name, its grid along x and its arguments."""
        shapes = [tuple(tensor.shape) for tensor in tensors]
        results = [
            torch.full([extent.evaluate(shapes) for extent in desc.shape_expr], 77, dtype=_TORCH[desc.dtype])
            for desc in self.described
        ]
        numbers = [number.evaluate(shapes) for number in self.numbers.content]
        grid = math.prod(getattr(self.launch, name).evaluate(shapes) for name in ("grid_x", "grid_y", "grid_z"))
        arguments = launcher(self.kernel, grid, [*tensors, *numbers, *results])
        return arguments[len(tensors) + len(numbers) :]


@dataclass
class FakePluginApi:
    """`tensorrt`, with as much of it as plugins need."""

    __name__ = "tensorrt"
    plugin: PluginModule = field(default_factory=PluginModule)
    bfloat16, float16, float32, int32, int64 = "bfloat16", "float16", "float32", "int32", "int64"


class PluginNetwork:
    """A network of plugins alone."""

    def __init__(self) -> None:
        self.layers: list[PluginLayer] = []

    def add_plugin(self, created: tuple[Definition, tuple[NetworkTensor, ...], dict[str, int]], aot: bool) -> PluginLayer:
        assert aot, "compiled ahead of time"
        self.layers.append(PluginLayer(*created))
        return self.layers[-1]

    def run(self, feed: dict[NetworkTensor, Tensor], launcher: Callable[..., list[Any]]) -> dict[NetworkTensor, Tensor]:
        """Values of all tensors, from those of the inputs."""
        values = dict(feed)
        for layer in self.layers:
            found = layer.run([values[tensor] for tensor in layer.inputs], launcher)
            values.update(zip(layer.outputs, found, strict=True))
        return values


class WithPlugins:
    """A module without plugins, and with them."""

    __name__ = "tensorrt"

    def __init__(self, api: Any) -> None:
        self._api = api
        self.plugin = PluginModule()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._api, name)


class NetworkWithPlugins:
    """A network of a module without plugins.

    What a plugin gives is an input of it, behind an identity because no input can be an output.
    """

    def __init__(self, network: Any) -> None:
        self._network = network
        self.plugins: list[PluginLayer] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._network, name)

    def add_plugin(self, created: tuple[Definition, Any, dict[str, int]], aot: bool) -> Any:
        assert aot, "compiled ahead of time"
        layer = PluginLayer(*created)
        self.plugins.append(layer)
        inputs = [
            self._network.add_input(f"{layer.kernel}_{index}", desc.dtype, (-1,) * len(desc.shape_expr))
            for index, desc in enumerate(layer.described)
        ]
        return SimpleNamespace(get_output=lambda index: self._network.add_identity(inputs[index]).get_output(0))

"""Walk a step graph and write it as a TensorRT network: one layer or a few per node, no ONNX in between.

A direct lowering keeps what the ONNX parser drops (lengths and alignment of attention) and puts transpositions where they cost
nothing (inside the matrix product).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import fx

from nemodiff_trt.build_engines.lowering.network_converters import NETWORK_CONVERTERS, network_dtype
from nemodiff_trt.errors import LoweringError
from nemodiff_trt.passes.axes import axis_letters, shape_with_letters
from nemodiff_trt.passes.graph import NODE_FORM, NODE_VALUE, StepGraph, operator_name
from nemodiff_trt.plugins import find_op
from nemodiff_trt.plugins.network_emitter import Heads, NetworkEmitter, NetworkTensor

_DYNAMIC = -1


def lower_to_network(
    api: Any,
    network: Any,
    graph: StepGraph,
    fixed: Mapping[str, int],
    weights: Mapping[str, np.ndarray] | None = None,
    plugin_sm: int | None = None,
    mixes_batches: bool = False,
) -> None:
    """Write `graph` into the empty, strongly typed `network`.

    Args:
        api: `tensorrt_rtx` or `tensorrt`.
        network: an `INetworkDefinition` of that module.
        graph: after its pipeline.
        fixed: extents of axes that are the same in every step, such as {"K": 4128} or {"S": 1}; the other letters stay dynamic.
        weights: stored tensors to embed as constants, bfloat16 and narrower formats as their bits; the others become inputs.
            They must outlive the compilation.
        plugin_sm: compute capability to compile kernels of plugins for; None where the graph has none.
        mixes_batches: a profile will take one sequence as well as several.

    Raises:
        LoweringError: a node has no converter, or a dtype no TensorRT type.
    """
    letters = axis_letters(graph)
    emit = NetworkEmitter(api, network, plugin_sm, mixes_batches)
    scratch = {graph.outputs[name]: name for name in graph.scratch}
    values: dict[fx.Node, Any] = {}
    for node in graph.graph.nodes:
        if node.op in ("placeholder", "get_attr"):
            values[node] = _source(emit, node, letters, fixed, weights)
        elif node.op == "call_function":
            values[node] = _convert(emit, node, values)
        if node in scratch:
            values[node] = _expose(emit, values[node], scratch[node])
    for name, node in graph.outputs.items():
        if name not in graph.scratch:
            tensor = values[node]
            tensor.name = name
            network.mark_output(tensor)


def _source(
    emit: NetworkEmitter,
    node: fx.Node,
    letters: dict[str, str],
    fixed: Mapping[str, int],
    weights: Mapping[str, np.ndarray] | None,
) -> NetworkTensor:
    """The network input or constant of an input or a weight of the graph."""
    name, value = str(node.target), node.meta[NODE_VALUE]
    dtype = network_dtype(emit.api, value.dtype)
    extents = shape_with_letters(value, letters)
    shape = tuple(fixed.get(extent, _DYNAMIC) if isinstance(extent, str) else extent for extent in extents)
    if value.dtype is torch.float4_e2m1fn_x2:
        # TensorRT counts numbers where torch counts bytes.
        shape = (*shape[:-1], 2 * shape[-1])
    if node.op == "placeholder" or weights is None or name not in weights:
        return emit.network.add_input(name, dtype, shape)
    array = weights[name]
    content = emit.api.Weights(dtype, array.ctypes.data, array.size)
    return emit.output(emit.network.add_constant(shape, content))


def _convert(emit: NetworkEmitter, node: fx.Node, values: dict[fx.Node, Any]) -> Any:
    form = node.meta.get(NODE_FORM)
    converter = find_op(str(operator_name(node))).load(form) if form else NETWORK_CONVERTERS.get(node.target)
    if converter is None:
        raise LoweringError(f"node {node.name} ({node.target}) has no TensorRT converter")
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda source: values[source])
    try:
        return converter(emit, *args, **kwargs)
    except (TypeError, AttributeError, RuntimeError) as error:
        raise LoweringError(f"node {node.name} ({node.target}): TensorRT does not take it: {error}") from error


def _expose(emit: NetworkEmitter, value: Any, name: str) -> Any:
    """`value` behind an identity that is an output, so that it has to exist in memory."""
    tensor = emit.output(emit.network.add_identity(value.tensor if isinstance(value, Heads) else value))
    tensor.name = name
    emit.network.mark_output(tensor)
    return Heads(tensor) if isinstance(value, Heads) else tensor

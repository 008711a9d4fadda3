"""Walk a step graph and write it as an ONNX model. No weight enters the model: they stay in the bundle's weight file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import onnx
import torch
from onnx import TensorProto, helper
from torch import Tensor, fx

from nemodiff_trt.build_engines.lowering.converters import CONVERTERS
from nemodiff_trt.bundle.safetensors_layout import Span
from nemodiff_trt.errors import LoweringError
from nemodiff_trt.passes.axes import axis_letters, shape_with_letters
from nemodiff_trt.passes.graph import NODE_VALUE, StepGraph
from nemodiff_trt.plugins.onnx_emitter import OPSET, OnnxEmitter

_PRODUCER = "nemodiff_trt"
_ELEMENT_TYPES = {
    torch.float32: TensorProto.FLOAT,
    torch.float16: TensorProto.FLOAT16,
    torch.int64: TensorProto.INT64,
    torch.bool: TensorProto.BOOL,
}


def lower_to_onnx(graph: StepGraph, spans: Mapping[str, Span], weights_file: str) -> onnx.ModelProto:
    """Write `graph` as an opset-24 model named after the contract.

    Args:
        graph: after its pipeline.
        spans: place of every stored weight in the weight file.
        weights_file: name of that file, which the model's external initializers refer to.

    Raises:
        LoweringError: a node has no converter, or a dtype no ONNX type.
    """
    letters = axis_letters(graph)
    emit = OnnxEmitter()
    names: dict[fx.Node, Any] = {}
    for node in graph.graph.nodes:
        if node.op in ("placeholder", "get_attr"):
            names[node] = str(node.target)
        elif node.op == "call_function":
            names[node] = _convert(emit, node, names)
        _declare(emit, names.get(node), node.meta.get(NODE_VALUE), letters)
    outputs = _named_outputs(emit, graph, names)
    weights = [_external(node, spans[str(node.target)], weights_file) for node in graph.weight_nodes()]
    inputs = [_value_info(name, node, letters) for name, node in graph.inputs.items()]
    results = [_value_info(name, node, letters) for name, node in graph.outputs.items()]
    body = helper.make_graph(emit.nodes, "step", inputs, results, initializer=[*weights, *emit.constants])
    _rename(body, outputs)
    opset = helper.make_opsetid("", OPSET)
    ir_version = helper.find_min_ir_version_for([opset])
    return helper.make_model(body, producer_name=_PRODUCER, opset_imports=[opset], ir_version=ir_version)


def _convert(emit: OnnxEmitter, node: fx.Node, names: dict[fx.Node, Any]) -> Any:
    converter = CONVERTERS.get(node.target)
    if converter is None:
        raise LoweringError(f"node {node.name} ({node.target}) has no ONNX converter")
    args, kwargs = _resolve(node.args, names), _resolve(node.kwargs, names)
    try:
        return converter(emit, *args, **kwargs)
    except (TypeError, KeyError) as error:
        raise LoweringError(
            f"node {node.name} ({node.target}): its ONNX converter does not take its arguments: {error}"
        ) from error


def _resolve(argument: Any, names: dict[fx.Node, Any]) -> Any:
    """`argument` with value names for nodes, and plain containers for those of fx."""
    if isinstance(argument, fx.Node):
        return names[argument]
    if isinstance(argument, Mapping):
        return {key: _resolve(value, names) for key, value in argument.items()}
    if isinstance(argument, (list, tuple)):
        return [_resolve(value, names) for value in argument]
    return argument


def _declare(emit: OnnxEmitter, name: Any, value: Any, letters: dict[str, str]) -> None:
    """Register dtype and shape of what a node returned."""
    if isinstance(name, tuple):
        for piece, piece_value in zip(name, value, strict=True):
            _declare(emit, piece, piece_value, letters)
    elif isinstance(name, str) and isinstance(value, Tensor):
        emit.declare(name, str(value.dtype).removeprefix("torch."), shape_with_letters(value, letters))


def _named_outputs(emit: OnnxEmitter, graph: StepGraph, names: dict[fx.Node, Any]) -> dict[str, str]:
    """Value name -> output name. A value that is an input, a weight or already an output is copied first."""
    produced = {output for node in emit.nodes for output in node.output}
    renamed: dict[str, str] = {}
    for name, node in graph.outputs.items():
        value = names[node]
        if value not in produced or value in renamed:
            emit.nodes.append(helper.make_node("Identity", [value], [name], name=f"output_{name}"))
        else:
            renamed[value] = name
    return renamed


def _rename(body: onnx.GraphProto, renamed: Mapping[str, str]) -> None:
    for node in body.node:
        for names in (node.input, node.output):
            for index, name in enumerate(names):
                names[index] = renamed.get(name, name)


def _element_type(name: str, dtype: torch.dtype) -> int:
    if dtype not in _ELEMENT_TYPES:
        raise LoweringError(f"{name}: {dtype} has no ONNX element type here")
    return int(_ELEMENT_TYPES[dtype])


def _value_info(name: str, node: fx.Node, letters: dict[str, str]) -> onnx.ValueInfoProto:
    value = node.meta[NODE_VALUE]
    return helper.make_tensor_value_info(name, _element_type(name, value.dtype), shape_with_letters(value, letters))


def _external(node: fx.Node, span: Span, weights_file: str) -> onnx.TensorProto:
    """Initializer whose data lies in the weight file."""
    name, value = str(node.target), node.meta[NODE_VALUE]
    if tuple(value.shape) != span.shape:
        raise LoweringError(f"{name}: the graph expects {tuple(value.shape)}, the weight file holds {span.shape}")
    tensor = TensorProto(name=name, data_type=_element_type(name, value.dtype), dims=span.shape)
    tensor.data_location = TensorProto.EXTERNAL
    for key, entry in (("location", weights_file), ("offset", span.start), ("length", span.num_bytes)):
        tensor.external_data.add(key=key, value=str(entry))
    return tensor

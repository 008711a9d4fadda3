"""One operator as an engine of its own: run by ONNX Runtime, compiled by TensorRT-RTX."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime
import torch
from onnx import TensorProto, helper
from torch import Tensor

from nemodiff_trt.plugins import Form, find_op
from nemodiff_trt.plugins.network_emitter import NetworkEmitter
from nemodiff_trt.plugins.onnx_emitter import OPSET, OnnxEmitter
from support.rtx_networks import require_tensorrt_rtx

_ELEMENTS = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16, "int64": TensorProto.INT64}
Shape = tuple[int | str, ...]


@dataclass(frozen=True, slots=True)
class Signature:
    """Operator, dtype and shape (letters for dynamic axes) of its tensors, and the attributes behind them."""

    name: str
    tensors: Sequence[tuple[str, Shape]]
    attributes: tuple[Any, ...] = ()


class OnnxOperator:
    """The ONNX form of an operator in ONNX Runtime, with its own rewriting on as in production."""

    def __init__(self, signature: Signature) -> None:
        emit = OnnxEmitter()
        names = [f"input_{index}" for index in range(len(signature.tensors))]
        for name, (dtype, shape) in zip(names, signature.tensors, strict=True):
            emit.declare(name, dtype, shape)
        results = find_op(signature.name).load(Form.ONNX)(emit, *names, *signature.attributes)
        outputs = list(results) if isinstance(results, tuple) else [results]
        self.names = names
        inputs = [
            helper.make_tensor_value_info(name, _ELEMENTS[dtype], shape)
            for name, (dtype, shape) in zip(names, signature.tensors, strict=True)
        ]
        graph = helper.make_graph(
            emit.nodes, signature.name, inputs, [helper.make_empty_tensor_value_info(name) for name in outputs], emit.constants
        )
        opset = helper.make_opsetid("", OPSET)
        self.model = helper.make_model(graph, opset_imports=[opset], ir_version=helper.find_min_ir_version_for([opset]))
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        providers = ["CPUExecutionProvider"]
        self.session = onnxruntime.InferenceSession(self.model.SerializeToString(), options, providers=providers)

    def __call__(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        feed = {name: tensor.numpy() for name, tensor in zip(self.names, tensors, strict=True)}
        return tuple(torch.from_numpy(np.asarray(value)) for value in self.session.run(None, feed))


def rtx_plan(signature: Signature, least: dict[str, int], most: dict[str, int]) -> bytes:
    """The network form of an operator, compiled for SM120 with its lettered axes between `least` and `most`.

    Raises:
        RuntimeError: TensorRT-RTX does not take the network.
    """
    trt = require_tensorrt_rtx()
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(0)
    emit = NetworkEmitter(trt, network)
    profile, tensors = builder.create_optimization_profile(), []
    for index, (dtype, shape) in enumerate(signature.tensors):
        name = f"input_{index}"
        dims = tuple(-1 if isinstance(extent, str) else extent for extent in shape)
        tensors.append(network.add_input(name, getattr(trt, dtype), dims))
        if -1 in dims:
            low, high = (tuple(sizes.get(e, e) if isinstance(e, str) else e for e in shape) for sizes in (least, most))
            profile.set_shape(name, low, high, high)
    results = find_op(signature.name).load(Form.NETWORK)(emit, *tensors, *signature.attributes)
    for index, tensor in enumerate(results if isinstance(results, tuple) else (results,)):
        tensor.name = f"output_{index}"
        network.mark_output(tensor)
    config = builder.create_builder_config()
    config.add_optimization_profile(profile)
    config.num_compute_capabilities = 1
    config.set_compute_capability(trt.ComputeCapability.SM120, 0)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise RuntimeError(f"TensorRT-RTX takes no {signature.name}")
    return bytes(plan)

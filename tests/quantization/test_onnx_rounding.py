"""ONNX Runtime rounds to FP8 and NVFP4 as the packed formats do, bit by bit."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import helper
from torch import Tensor

from nemodiff_trt.plugins.onnx_emitter import OPSET, OnnxEmitter
from nemodiff_trt.plugins.onnx_forms import ONNX_FORMS
from nemodiff_trt.quantization.formats import fp8_scale, nvfp4_global_scale


def values(seed: int) -> Tensor:
    """[2,3,64] over many orders of magnitude, with zeros, ties of both formats, and numbers beyond the range."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(2, 3, 64, generator=generator) * torch.exp(4 * torch.randn(2, 3, 64, generator=generator))
    x[0, 0, :16] = 0
    x[0, 1, :16] = torch.tensor([6, 5, 3.5, 2.5, 1.75, 1.25, 0.75, 0.25, -0.25, -0.75, -1.25, -1.75, -2.5, -3.5, -5, -6])
    x[1, 1, :16] *= 1e-8
    return x


def run_onnx(name: str, x: Tensor, scale: Tensor) -> Tensor:
    emit = OnnxEmitter()
    emit.declare("x", "float32", ("B", "S", 64))
    emit.declare("scale", "float32", ())
    result = ONNX_FORMS[name](emit, "x", "scale")
    float_type = onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        emit.nodes,
        "g",
        [
            helper.make_tensor_value_info("x", float_type, ("B", "S", 64)),
            helper.make_tensor_value_info("scale", float_type, ()),
        ],
        [helper.make_tensor_value_info(result, float_type, ("B", "S", 64))],
        initializer=emit.constants,
    )
    opset = helper.make_opsetid("", OPSET)
    model = helper.make_model(graph, opset_imports=[opset], ir_version=helper.find_min_ir_version_for([opset]))
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"x": x.numpy(), "scale": np.asarray(scale.numpy())})
    return torch.from_numpy(found)


@pytest.mark.parametrize("name", ["round_to_fp8", "round_to_nvfp4"])
@pytest.mark.parametrize("share", [1.0, 0.1, 7.0])
def test_equals_the_reference(name: str, share: float) -> None:
    x = values(0)
    scale = (fp8_scale if name.endswith("fp8") else nvfp4_global_scale)(x.abs().max() * share)
    expected = getattr(torch.ops.nemodiff, name)(x, scale)
    found = run_onnx(name, x, scale)
    # The sign of zero is not kept, nobody can tell.
    assert torch.equal(found, expected)
    assert (found - x).abs().max() > 0

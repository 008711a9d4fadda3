"""Graphs after a pass mean the same to ONNX Runtime, with its own rewriting switched off."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor

from nemodiff_trt.build_engines.lowering import lower_to_onnx
from nemodiff_trt.bundle.safetensors_layout import plan_spans
from nemodiff_trt.options import AdapterForm
from nemodiff_trt.passes.apply_draft_adapter import apply_draft_adapter
from nemodiff_trt.passes.attach_decision_head import attach_decision_head
from nemodiff_trt.passes.base import Pass, PassOptions, run_pipeline
from nemodiff_trt.passes.fuse_gate_up import fuse_gate_up
from nemodiff_trt.passes.fuse_qkv import fuse_qkv
from nemodiff_trt.passes.graph import NODE_VALUE, StepGraph
from nemodiff_trt.passes.pipelines import PIPELINES
from nemodiff_trt.passes.select_last_position import select_last_position
from nemodiff_trt.passes.set_attention_direction import set_attention_direction
from nemodiff_trt.passes.transpose_linear_weights import transpose_linear_weights
from nemodiff_trt.vocabulary import Role, Target
from support.graphs import pass_options, run_graph, stored_weights
from support.steps import EagerStep


def run_onnxruntime(graph: StepGraph, parameters: dict[str, Tensor], inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Lower a graph, give it fp32 weights, and run it as it is written."""
    kinds = {str(node.target): ("float32", tuple(node.meta[NODE_VALUE].shape)) for node in graph.weight_nodes()}
    model = lower_to_onnx(graph, plan_spans(kinds)[1], "weights")
    weights = stored_weights(graph.weights, parameters)
    for initializer in model.graph.initializer:
        if initializer.name in weights:
            value = weights[initializer.name].float().contiguous().numpy()
            initializer.CopyFrom(numpy_helper.from_array(value, initializer.name))
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    feed = {name: (inputs[name].float() if inputs[name].is_floating_point() else inputs[name]).numpy() for name in graph.inputs}
    outputs = session.run(list(graph.output_names), feed)
    return {name: torch.from_numpy(np.asarray(value)) for name, value in zip(graph.output_names, outputs, strict=True)}


def check(graph: StepGraph, step: EagerStep) -> None:
    found, expected = (run(graph, step.parameters, step.inputs) for run in (run_onnxruntime, run_graph))
    # fp32 against float64 over two layers.
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5, check_dtype=False)


def test_the_capture(captured: StepGraph, eager_step: EagerStep) -> None:
    check(captured, eager_step)


@pytest.mark.parametrize(
    ("step_pass", "options"),
    [
        (set_attention_direction, pass_options(Role.DENOISE)),
        (apply_draft_adapter, pass_options(Role.DRAFT)),
        (apply_draft_adapter, pass_options(Role.DRAFT, adapter_form=AdapterForm.MERGED)),
        (select_last_position, pass_options(Role.PREFILL)),
        (attach_decision_head, pass_options(keep_logits=True)),
        (fuse_qkv, pass_options()),
        (fuse_gate_up, pass_options()),
        (transpose_linear_weights, pass_options()),
    ],
)
def test_one_pass(captured: StepGraph, eager_step: EagerStep, step_pass: Pass, options: PassOptions) -> None:
    assert step_pass(captured, options).count > 0
    captured.tidy()
    check(captured, eager_step)


@pytest.mark.parametrize("role", list(PIPELINES[Target.ONNXRUNTIME]))
def test_all_passes_of_a_role(captured: StepGraph, eager_step: EagerStep, role: Role) -> None:
    run_pipeline(captured, PIPELINES[Target.ONNXRUNTIME][role], pass_options(role, keep_logits=True))
    check(captured, eager_step)

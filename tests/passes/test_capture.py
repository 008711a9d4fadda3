"""The one capture: named like the contract, dynamic in batch, step and capacity, and made without data."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses import FakeTensor

from nemodiff_trt import contract
from nemodiff_trt.build_engines.capture import capture_decoder, capture_step
from nemodiff_trt.bundle import Combine
from nemodiff_trt.contract import step_contract
from nemodiff_trt.passes.axes import axis_letters, shape_with_letters
from nemodiff_trt.passes.graph import NODE_VALUE, StepGraph
from nemodiff_trt.vocabulary import Precision, Role
from support.checkpoints import random_decoder, tiny_config
from support.graphs import EXACT, operators, run_graph
from support.steps import TABLES, EagerStep


def test_inputs_and_outputs_have_the_names_and_order_of_the_contract(captured: StepGraph) -> None:
    wanted = step_contract(Role.VERIFY, tiny_config(), Precision.FP32)
    decided = {contract.TOKEN, contract.CONFIDENCE}
    assert tuple(captured.inputs) == tuple(spec.name for spec in wanted.inputs)
    assert captured.output_names == (contract.LOGITS, *(spec.name for spec in wanted.outputs if spec.name not in decided))


def test_batch_step_and_capacity_are_symbols_everywhere(captured: StepGraph) -> None:
    config, letters = tiny_config(), axis_letters(captured)
    cache = ("B", config.num_key_value_heads, "K", config.head_dim)
    shapes = {name: shape_with_letters(node.meta[NODE_VALUE], letters) for name, node in captured.outputs.items()}
    assert sorted(letters.values()) == ["B", "K", "S"]
    assert shapes.pop(contract.LOGITS) == ("B", "S", config.vocab_size)
    assert set(shapes.values()) == {cache}


@pytest.mark.parametrize(("lengths", "num_tokens"), [((7,), 1), ((0, 21, 5, 47), 17), ((1, 2), 64 - 2)])
def test_equals_the_decoder_at_every_batch_and_step(captured: StepGraph, lengths: tuple[int, ...], num_tokens: int) -> None:
    step = EagerStep.random(random_decoder(tiny_config(), 64).double(), lengths, num_tokens, capacity=64, seed=num_tokens)
    outputs, expected = run_graph(captured, step.parameters, step.inputs), step.run(causal=True)
    assert list(outputs) == list(expected)
    torch.testing.assert_close(outputs, expected, **EXACT)


@pytest.mark.parametrize("capacity", [13, 200])
def test_capacity_of_the_cache_is_free(captured: StepGraph, capacity: int) -> None:
    step = EagerStep.random(random_decoder(tiny_config(), capacity).double(), (0, 9), num_tokens=4, capacity=capacity)
    torch.testing.assert_close(run_graph(captured, step.parameters, step.inputs), step.run(causal=True), **EXACT)


def test_holds_one_node_per_operation(captured: StepGraph) -> None:
    attention = ["rms_norm", *["linear", "rotary"] * 2, "cache_update", "linear", "cache_update", "attention", "linear", "add"]
    feed_forward = ["rms_norm", "linear", "silu", "linear", "mul", "linear", "add"]
    layers = (attention + feed_forward) * tiny_config().num_hidden_layers
    assert operators(captured) == ["step_positions", "embedding", *layers, "rms_norm", "linear"]


def test_weights_are_those_of_the_checkpoint_without_adapter(captured: StepGraph) -> None:
    parameters = random_decoder(tiny_config(), 1, adapter_rank=0).state_dict()
    plain = {name: layout for name, layout in captured.weights.items() if name not in TABLES}
    assert set(plain) == set(parameters)
    assert all(layout.sources == (name,) and not layout.transposed for name, layout in plain.items())
    assert all(captured.weights[name].combine is Combine.ROTARY_TABLE for name in TABLES)
    assert {layout.dtype for layout in captured.weights.values()} == {"float32"}


def test_holds_no_data() -> None:
    # About 4 TiB of weights: only a capture that reads none gets through.
    huge = tiny_config(hidden_size=2**19, intermediate_size=2**20)
    graph = capture_step(huge, torch.float16, 64)
    values = [node.meta[NODE_VALUE] for node in graph.graph.nodes if isinstance(node.meta.get(NODE_VALUE), torch.Tensor)]
    assert len(values) > len(graph.weights)
    assert all(isinstance(value, FakeTensor) for value in values)
    assert {layout.dtype for layout in graph.weights.values()} == {"float16"}


def test_a_decoder_with_data_is_captured_alike(captured: StepGraph) -> None:
    graph = capture_decoder(random_decoder(tiny_config(), 64))
    assert (str(graph.graph), graph.output_names, graph.weights) == (
        str(captured.graph),
        captured.output_names,
        captured.weights,
    )

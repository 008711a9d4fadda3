"""The one capture: an eager decoder becomes a `StepGraph` with dynamic batch, step and cache capacity."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx
from torch.export import Dim, ExportedProgram
from torch.export.graph_signature import InputKind

from nemodiff_trt.bundle import Combine, WeightLayout
from nemodiff_trt.config import ModelConfig
from nemodiff_trt.contract import CACHE_LENGTH, INPUT_IDS, LOGITS, past_key, past_value, present_key, present_value
from nemodiff_trt.model import TriModeDecoder
from nemodiff_trt.passes.graph import NODE_VALUE, StepGraph

# Any sizes above 1 will do: the exporter takes 0 and 1 for constants.
_EXAMPLE_BATCH, _EXAMPLE_STEP, _EXAMPLE_CAPACITY = 2, 3, 8


def capture_step(config: ModelConfig, dtype: torch.dtype, cache_capacity: int) -> StepGraph:
    """Capture one causal step without adapter of a decoder that has no data (device `meta`).

    Args:
        config: geometry.
        dtype: of weights, activations and cache.
        cache_capacity: rows of the rotary tables.
    """
    with torch.device("meta"):
        decoder = TriModeDecoder(config, cache_capacity).to(dtype).requires_grad_(False).eval()
    return capture_decoder(decoder)


def capture_decoder(decoder: TriModeDecoder) -> StepGraph:
    """Capture one causal step without adapter of `decoder`, on whatever device its parameters are."""
    config, weight = decoder.config, decoder.diffusion_head.weight
    shape = (_EXAMPLE_BATCH, config.num_key_value_heads, _EXAMPLE_CAPACITY, config.head_dim)
    input_ids = torch.zeros(_EXAMPLE_BATCH, _EXAMPLE_STEP, dtype=torch.int64, device=weight.device)
    cache_length = torch.zeros(_EXAMPLE_BATCH, dtype=torch.int64, device=weight.device)
    # Distinct tensors: one tensor given twice would become one input.
    keys, values = ([weight.new_zeros(shape) for _ in range(config.num_hidden_layers)] for _ in range(2))
    batch, step, capacity = (Dim(letter, min=1) for letter in "BSK")
    cache_axes = [{0: batch, 2: capacity}] * config.num_hidden_layers
    dynamic = {
        "input_ids": {0: batch, 1: step},
        "cache_length": {0: batch},
        "past_keys": cache_axes,
        "past_values": cache_axes,
    }
    program = torch.export.export(decoder, (input_ids, cache_length, keys, values), dynamic_shapes=dynamic)
    return _to_step_graph(program, config)


def _to_step_graph(program: ExportedProgram, config: ModelConfig) -> StepGraph:
    """Name inputs, outputs and weights as contract and checkpoint do, in the order of the contract."""
    layers = range(config.num_hidden_layers)
    input_names = [INPUT_IDS, CACHE_LENGTH, *map(past_key, layers), *map(past_value, layers)]
    output_names = [LOGITS, *map(present_key, layers), *map(present_value, layers)]
    stored = {
        spec.arg.name: spec.target for spec in program.graph_signature.input_specs if spec.kind is not InputKind.USER_INPUT
    }
    source_nodes = [node for node in program.graph.nodes if node.op == "placeholder"]
    user_inputs = dict(zip(input_names, (node for node in source_nodes if node.name not in stored), strict=True))
    graph, copied = fx.Graph(), {}
    in_order = [INPUT_IDS, CACHE_LENGTH, *(name for layer in layers for name in (past_key(layer), past_value(layer)))]
    for name in in_order:
        copied[user_inputs[name]] = graph.placeholder(name)
    weights: dict[str, WeightLayout] = {}
    for node in source_nodes:
        if node.name in stored:
            name = str(stored[node.name])
            copied[node] = graph.create_node("get_attr", name)
            weights[name] = _layout(name, program, node.meta[NODE_VALUE].dtype)
    results: tuple[fx.Node, ...] = ()
    for node in program.graph.nodes:
        if node.op == "call_function":
            copied[node] = graph.node_copy(node, lambda source: copied[source])
        elif node.op == "output":
            results = tuple(copied[source] for source in node.args[0])
    for source, node in copied.items():
        node.meta = {NODE_VALUE: source.meta[NODE_VALUE]}
    graph.output(results)
    captured = StepGraph(graph, tuple(output_names), weights)
    ordered: dict[str, Any] = {LOGITS: captured.outputs[LOGITS]}
    for layer in layers:
        ordered |= {name: captured.outputs[name] for name in (present_key(layer), present_value(layer))}
    captured.set_outputs(ordered)
    captured.tidy()
    return captured


def _layout(name: str, program: ExportedProgram, dtype: torch.dtype) -> WeightLayout:
    """As stored in the checkpoint; a buffer is a rotary table."""
    is_table = name in program.graph_signature.buffers
    dtype_name = str(dtype).removeprefix("torch.")
    return WeightLayout(() if is_table else (name,), False, dtype_name, Combine.ROTARY_TABLE if is_table else Combine.CONCAT)

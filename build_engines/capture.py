"""The one capture: `TriModeDecoder` to a step graph with dynamic batch and step, through torch.export."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, fx

from nemodiff_trt import contract
from nemodiff_trt.contract import Limits
from nemodiff_trt.model import TriModeDecoder
from nemodiff_trt.passes.base import StepGraph

# The example only has to differ from 0 and 1, which torch.export would take for constants.
_EXAMPLE_BATCH, _EXAMPLE_STEP = 2, 3


def capture_step(decoder: TriModeDecoder, limits: Limits) -> StepGraph:
    """Causal step graph of `decoder`, inputs and outputs named and ordered by the step contract, logits for a decision.

    Works on the meta device: no weight is read. `limits` bound batch and step and fix the cache capacity K.
    """
    config, device = decoder.config, decoder.key_cos.device
    shape = (_EXAMPLE_BATCH, config.num_key_value_heads, limits.cache_capacity, config.head_dim)

    def caches() -> list[Tensor]:
        # Distinct tensors: one given twice would become one input.
        return [torch.zeros(shape, dtype=decoder.key_cos.dtype, device=device) for _ in range(config.num_hidden_layers)]

    ids = torch.zeros((_EXAMPLE_BATCH, _EXAMPLE_STEP), dtype=torch.int64, device=device)
    length = torch.zeros(_EXAMPLE_BATCH, dtype=torch.int64, device=device)
    batch = torch.export.Dim("B", min=1, max=max(limits.max_batch_size, _EXAMPLE_BATCH))
    step = torch.export.Dim("S", min=1, max=max(limits.prefill_chunk, limits.block_length, _EXAMPLE_STEP))
    per_cache = [{0: batch} for _ in range(config.num_hidden_layers)]
    dynamic = ({0: batch, 1: step}, {0: batch}, per_cache, list(per_cache))
    exported = torch.export.export(decoder, (ids, length, caches(), caches()), dynamic_shapes=dynamic)
    module = exported.module(check_guards=False)
    if not isinstance(module, fx.GraphModule):
        raise TypeError(f"torch.export returned a {type(module).__name__}")
    # A flat signature in place of lists of caches.
    module.graph.set_codegen(fx.graph.CodeGen())
    graph = StepGraph(module, (), dict(decoder.state_dict()))
    _name_by_contract(graph, config.num_hidden_layers)
    graph.tidy()
    return graph


def copy_graph(graph: StepGraph) -> StepGraph:
    """An independent graph over the same weight tensors, for the passes of one role."""
    module = fx.GraphModule(graph.module, copy.deepcopy(graph.module.graph))
    return StepGraph(module, graph.output_names, graph.parameters, dict(graph.layouts), dict(graph.derived))


def _name_by_contract(graph: StepGraph, num_layers: int) -> None:
    """Rename inputs, interleave keys and values per layer, name outputs."""
    found = [node for node in graph.graph.nodes if node.op == "placeholder"]
    ids, length, keys, values = found[0], found[1], found[2 : 2 + num_layers], found[2 + num_layers : 2 + 2 * num_layers]
    # The capture also lists the two switches of the forward, fixed to their defaults.
    for unused in found[2 + 2 * num_layers :]:
        graph.graph.erase_node(unused)
    ordered = [(ids, contract.INPUT_IDS), (length, contract.CACHE_LENGTH)]
    for layer in range(num_layers):
        ordered += [(keys[layer], contract.past_key(layer)), (values[layer], contract.past_value(layer))]
    previous: fx.Node | None = None
    for node, name in ordered:
        node.name = node.target = name
        if previous is not None:
            previous.append(node)
        previous = node
    flat = graph.output_node.args[0]
    logits, keys_out, values_out = flat[0], flat[1 : 1 + num_layers], flat[1 + num_layers :]
    outputs, names = [logits], [contract.LOGITS]
    for layer in range(num_layers):
        outputs += [keys_out[layer], values_out[layer]]
        names += [contract.present_key(layer), contract.present_value(layer)]
    graph.output_node.update_arg(0, tuple(outputs))
    graph.output_names = tuple(names)

"""Plans of the small decoders in support.rtx_networks, and the facts their audit is told."""

from __future__ import annotations

from dataclasses import replace
from math import prod
from typing import Any

import numpy as np

from nemodiff_trt.plan_audit import AuditPoint, CacheFact, ProfileRange, StepFacts, WeightFact, is_row_table
from nemodiff_trt.vocabulary import Precision
from support.rtx_networks import DYNAMIC, Decoder, Defects, Sizes, require_tensorrt_rtx


def _inputs(decoder: Decoder) -> tuple[Any, tuple[Any, Any]]:
    """Declare ids, lengths and rotary tables; returns the ids and the tables."""
    net, trt, sizes = decoder.net, decoder.trt, decoder.sizes
    batch = DYNAMIC if sizes.max_batch > 1 else 1
    smallest, largest = (f(step[i] for step in sizes.steps) for i, f in ((0, min), (1, max)))
    ids = net.add_input("input_ids", trt.int64, (batch, DYNAMIC if smallest != largest else smallest))
    cache_length = net.add_input("cache_length", trt.int64, (batch,))
    step = net.add_slice(net.add_shape(ids).get_output(0), (1,), (1,), (1,)).get_output(0)
    decoder.index = decoder.cast(cache_length, trt.int32)
    decoder.lengths = decoder.cast(decoder.elementwise(cache_length, step, "SUM"), trt.int32)
    count = net.add_fill((0,), trt.FillOperation.LINSPACE, trt.int64)
    count.set_input(0, step)
    count.set_input(1, decoder.constant(np.array(0, np.int64)))
    count.set_input(2, decoder.constant(np.array([1], np.int64)))
    rows, columns = decoder.shuffle(cache_length, (-1, 1)), decoder.shuffle(count.get_output(0), (1, -1))
    decoder.positions = decoder.elementwise(rows, columns, "SUM")
    half = sizes.head_dim // 2
    return ids, (decoder.weight("rotary_cos", sizes.capacity, half), decoder.weight("rotary_sin", sizes.capacity, half))


def _layer(decoder: Decoder, x: Any, tables: tuple[Any, Any], layer: int) -> Any:
    sizes = decoder.sizes
    q_width, kv_width = sizes.query_width, sizes.num_kv_heads * sizes.head_dim
    normed = decoder.norm(x, f"layers.{layer}.norm", sizes.hidden)
    packed = decoder.linear(normed, f"layers.{layer}.qkv", sizes.hidden, sizes.qkv_width)
    query = decoder.heads(decoder.slice_last(packed, 0, q_width), sizes.num_heads)
    key = decoder.heads(decoder.slice_last(packed, q_width, kv_width), sizes.num_kv_heads)
    value = decoder.heads(decoder.slice_last(packed, q_width + kv_width, kv_width), sizes.num_kv_heads)
    key = decoder.cache("key", layer, decoder.rotary(key, tables))
    value = decoder.cache("value", layer, value)
    attended = decoder.attention(decoder.rotary(query, tables), key, value, layer)
    merged = decoder.shuffle(attended, (0, 0, q_width), first=(0, 2, 1, 3))
    return decoder.elementwise(x, decoder.linear(merged, f"layers.{layer}.out", q_width, sizes.hidden), "SUM")


def build_plan(sizes: Sizes, defects: Defects | None = None) -> tuple[bytes, Decoder]:
    """Compile a decoder for SM120. Returns the plan and the network's builder, which knows the weights."""
    trt = require_tensorrt_rtx()
    builder = trt.Builder(trt.Logger(trt.Logger.ERROR))
    decoder = Decoder(trt, sizes, defects or Defects(), builder.create_network(0))
    net = decoder.net
    ids, tables = _inputs(decoder)
    x = net.add_gather(decoder.weight("embed_tokens.weight", sizes.vocab, sizes.hidden), ids, 0).get_output(0)
    for layer in range(sizes.num_layers):
        x = _layer(decoder, x, tables, layer)
    logits = decoder.cast(decoder.linear(decoder.norm(x, "norm", sizes.hidden), "head", sizes.hidden, sizes.vocab), trt.float32)
    best = net.add_topk(logits, trt.TopKOperation.MAX, 1, 1 << 2, trt.int64).get_output(1)
    token = decoder.shuffle(best, (0, 0))
    if decoder.defects.size_from_data:
        token = _first_tokens(decoder, token)
    token.name = "token"
    net.mark_output(token)
    plan = builder.build_serialized_network(net, _config(builder, decoder))
    if plan is None:
        raise RuntimeError(f"no plan for {sizes} with {decoder.defects}")
    return bytes(plan), decoder


def _first_tokens(decoder: Decoder, token: Any) -> Any:
    """As many tokens as the largest id says: a size that only the device knows."""
    net, trt = decoder.net, decoder.trt
    largest = net.add_reduce(token, trt.ReduceOperation.MAX, 3, False).get_output(0)
    count = net.add_concatenation([decoder.constant(np.array([1], np.int64)), decoder.shuffle(largest, (1,))])
    count.axis = 0
    layer = net.add_slice(token, (0, 0), (0, 0), (1, 1))
    layer.set_input(2, count.get_output(0))
    return net.add_reduce(layer.get_output(0), trt.ReduceOperation.SUM, 2, True).get_output(0)


def _config(builder: Any, decoder: Decoder) -> Any:
    """One optimisation profile a step range, for SM120."""
    net, trt, sizes = decoder.net, decoder.trt, decoder.sizes
    config = builder.create_builder_config()
    for step in sizes.steps:
        profile = builder.create_optimization_profile()
        for index in range(net.num_inputs):
            tensor = net.get_input(index)
            if DYNAMIC in tuple(tensor.shape):
                least, most = (
                    tuple((b if axis == 0 else s) if dim == DYNAMIC else dim for axis, dim in enumerate(tensor.shape))
                    for b, s in ((1, step[0]), (sizes.max_batch, step[1]))
                )
                profile.set_shape(tensor.name, least, most, most)
        config.add_optimization_profile(profile)
    config.num_compute_capabilities = 1
    config.set_compute_capability(trt.ComputeCapability.SM120, 0)
    return config


def facts_of(decoder: Decoder, *points: AuditPoint, **changes: Any) -> StepFacts:
    """What the audit of a decoder's plan is told; without `points`, every profile is audited at its largest step."""
    sizes = decoder.sizes
    bits = {"bfloat16": 16, "float32": 32, "fp8": 8, "fp4": 4}
    weights = {
        name: WeightFact(dtype, shape, prod(shape) * bits[dtype] // 8, is_row_table(name), name in decoder.embedded)
        for name, (dtype, shape) in decoder.weights.items()
    }
    facts = StepFacts(
        role="verify",
        precision=Precision.BF16,
        num_layers=sizes.num_layers,
        vocab_size=sizes.vocab,
        cache=CacheFact(sizes.num_kv_heads, sizes.capacity, sizes.head_dim, item_bytes=2),
        weights=weights,
        profiles=tuple(ProfileRange(1, sizes.max_batch, *step) for step in sizes.steps),
        points=points,
    )
    return replace(facts, **changes)

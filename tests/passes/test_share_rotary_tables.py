"""share_rotary_tables: queries read the key tables exactly where both hold the same numbers."""

from __future__ import annotations

import dataclasses

import torch

from nemodiff_trt.passes.graph import StepGraph
from nemodiff_trt.passes.share_rotary_tables import share_rotary_tables
from support.checkpoints import random_decoder, tiny_config
from support.graphs import EXACT, listing, pass_options, run_graph
from support.steps import EagerStep

# The tiny model scales queries from position 32 on.
UNSCALED = 32


def test_fires_once_per_layer_and_two_tables_go(captured: StepGraph) -> None:
    report = share_rotary_tables(captured, pass_options(cache_capacity=UNSCALED))
    captured.tidy()
    assert (report.name, report.count) == ("share_rotary_tables", 2)
    assert {refusal.reason for refusal in report.refusals} == {"does not read the query tables"}
    assert {name for name in captured.weights if name.endswith(("cos", "sin"))} == {"key_cos", "key_sin"}


def test_refuses_where_a_position_of_the_cache_is_scaled(captured: StepGraph) -> None:
    before = listing(captured)
    report = share_rotary_tables(captured, pass_options(cache_capacity=UNSCALED + 1))
    assert report.count == 0
    assert "queries are scaled from position 32 on" in {refusal.reason for refusal in report.refusals}
    assert listing(captured) == before


def test_refuses_a_graph_without_key_tables(captured: StepGraph) -> None:
    for node in captured.weight_nodes():
        node.target = {"key_cos": "other_cos", "key_sin": "other_sin"}.get(str(node.target), node.target)
    report = share_rotary_tables(captured, pass_options(cache_capacity=UNSCALED))
    assert report.count == 0
    assert "the graph has no key tables" in {refusal.reason for refusal in report.refusals}


def test_a_model_without_query_scale_always_shares(captured: StepGraph) -> None:
    rope = dataclasses.replace(tiny_config().rope_parameters, llama_4_scaling_beta=0.0)
    config = tiny_config(rope_parameters=rope)
    assert share_rotary_tables(captured, pass_options(model=config, cache_capacity=10 * UNSCALED)).count == 2


def test_a_second_run_changes_nothing(captured: StepGraph) -> None:
    share_rotary_tables(captured, pass_options(cache_capacity=UNSCALED))
    captured.tidy()
    before = listing(captured)
    assert share_rotary_tables(captured, pass_options(cache_capacity=UNSCALED)).count == 0
    assert listing(captured) == before


def test_equals_the_eager_decoder(captured: StepGraph) -> None:
    decoder = random_decoder(tiny_config(), UNSCALED).double()
    step = EagerStep.random(decoder, lengths=(0, UNSCALED - 5, 3), num_tokens=5, capacity=UNSCALED)
    share_rotary_tables(captured, pass_options(cache_capacity=UNSCALED))
    captured.tidy()
    torch.testing.assert_close(run_graph(captured, step.parameters, step.inputs), step.run(causal=True), **EXACT)

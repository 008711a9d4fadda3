"""select_last_position: a prefill normalises and multiplies one row per sequence, the one its input names."""

from __future__ import annotations

import pytest
import torch

from nemodiff_trt.contract import CACHE_LENGTH, LAST_INDEX, LOGITS, step_contract
from nemodiff_trt.passes.axes import axis_letters, shape_with_letters
from nemodiff_trt.passes.graph import NODE_VALUE, StepGraph
from nemodiff_trt.passes.select_last_position import select_last_position
from nemodiff_trt.vocabulary import Precision, Role
from support.checkpoints import tiny_config
from support.graphs import EXACT, GraphBuilder, listing, operators, pass_options, run_graph
from support.steps import EagerStep

aten = torch.ops.aten
OPTIONS = pass_options(Role.PREFILL)


def head_graph(read_again: str = "", normalised: bool = True) -> StepGraph:
    """X [2,3,4] -> norm -> logits [2,3,5]."""
    build = GraphBuilder()
    x = build.input("x", 2, 3, 4)
    build.input(CACHE_LENGTH, 2, dtype=torch.int64)
    rows = build.call(torch.ops.nemodiff.rms_norm.default, x, build.weight("norm.weight", 4), 1e-5) if normalised else x
    logits = build.linear(rows, "head.weight", 5)
    if not read_again:
        return build.finish(**{LOGITS: logits})
    again = rows if read_again == "output" else build.call(aten.silu.default, rows if read_again == "norm" else logits)
    return build.finish(**{LOGITS: logits, "again": again})


def test_fires_before_the_final_norm() -> None:
    graph = head_graph()
    report = select_last_position(graph, OPTIONS)
    assert (report.count, report.refusals) == (1, ())
    assert operators(graph) == ["select_position", "rms_norm", "linear"]
    assert list(graph.inputs) == ["x", CACHE_LENGTH, LAST_INDEX]
    assert tuple(graph.outputs[LOGITS].meta[NODE_VALUE].shape) == (2, 1, 5)


def test_gives_the_captured_step_the_signature_of_a_prefill(captured: StepGraph) -> None:
    select_last_position(captured, OPTIONS)
    wanted = step_contract(Role.PREFILL, tiny_config(), Precision.FP32)
    assert tuple(captured.inputs) == tuple(spec.name for spec in wanted.inputs)
    assert captured.inputs[LAST_INDEX].meta[NODE_VALUE].dtype == torch.int64
    logits = captured.outputs[LOGITS].meta[NODE_VALUE]
    assert shape_with_letters(logits, axis_letters(captured)) == ("B", 1, tiny_config().vocab_size)


def test_refuses_logits_without_a_norm() -> None:
    graph = head_graph(normalised=False)
    before = listing(graph)
    report = select_last_position(graph, OPTIONS)
    assert (report.count, report.refusals[0].reason) == (0, "not a linear layer behind a normalisation")
    assert listing(graph) == before


def test_refuses_a_graph_without_logits() -> None:
    graph = head_graph()
    graph.set_outputs({"other": graph.outputs[LOGITS]})
    report = select_last_position(graph, OPTIONS)
    assert (report.count, report.refusals[0].node) == (0, LOGITS)


@pytest.mark.parametrize(("read_again", "reader"), [("norm", "silu_default"), ("logits", "silu_default"), ("output", "output")])
def test_refuses_rows_that_are_read_elsewhere_too(read_again: str, reader: str) -> None:
    graph = head_graph(read_again)
    before = listing(graph)
    report = select_last_position(graph, OPTIONS)
    assert (report.count, report.refusals[0].reason) == (0, f"all rows are also read by {reader}")
    assert listing(graph) == before


def test_a_second_run_changes_nothing(captured: StepGraph) -> None:
    select_last_position(captured, OPTIONS)
    before = listing(captured)
    report = select_last_position(captured, OPTIONS)
    assert (report.count, report.refusals[0].reason) == (0, "the graph already selects a row")
    assert listing(captured) == before


def test_equals_the_named_rows_of_the_decoder(captured: StepGraph, eager_step: EagerStep) -> None:
    select_last_position(captured, OPTIONS)
    outputs, expected = run_graph(captured, eager_step.parameters, eager_step.inputs), eager_step.run(causal=True)
    last = eager_step.inputs[LAST_INDEX]
    assert last.unique().numel() > 1
    expected[LOGITS] = torch.stack([rows[index : index + 1] for rows, index in zip(expected[LOGITS], last, strict=True)])
    torch.testing.assert_close(outputs, expected, **EXACT)

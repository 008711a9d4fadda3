"""Pipelines hold passes to their counts; graphs copy, tidy and run as passes rely on."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import pytest
import torch

from nemodiff_trt.bundle import WeightLayout
from nemodiff_trt.errors import PassError
from nemodiff_trt.passes.base import PassOptions, PassReport, Refusal, Stage, run_pipeline
from nemodiff_trt.passes.graph import NODE_VALUE, StepGraph, num_calls
from nemodiff_trt.passes.pipelines import PIPELINES
from nemodiff_trt.vocabulary import Role, Target
from support.graphs import EXACT, GraphBuilder, listing, operators, pass_options, random_inputs, random_parameters, run_graph

aten = torch.ops.aten


def two_linears() -> StepGraph:
    build = GraphBuilder()
    x = build.input("x", 2, 3)
    return build.finish(first=build.linear(x, "a.weight", 4), second=build.linear(x, "b.weight", 4))


def reporting(count: int, *refusals: Refusal) -> Any:
    def some_pass(graph: StepGraph, options: PassOptions) -> PassReport:
        return PassReport("some_pass", count, refusals)

    return some_pass


def times(count: int) -> Callable[[PassOptions], int]:
    def expected(options: PassOptions) -> int:
        return count

    return expected


class TestRunPipeline:
    def test_returns_the_reports_in_order(self) -> None:
        stages = (Stage(reporting(3), times(3)), Stage(reporting(0), times(0)))
        assert [report.count for report in run_pipeline(two_linears(), stages, pass_options())] == [3, 0]

    @pytest.mark.parametrize("count", [0, 1, 3])
    def test_fails_on_any_other_count(self, count: int) -> None:
        stages = (Stage(reporting(count, Refusal("add_3", "has a bias"), Refusal("add_7", "is late")), times(2)),)
        wanted = rf"some_pass fired {count} times for role draft, expected 2 \(add_3: has a bias; add_7: is late\)"
        with pytest.raises(PassError, match=wanted):
            run_pipeline(two_linears(), stages, pass_options(Role.DRAFT))

    def test_says_so_when_nothing_came_close(self) -> None:
        with pytest.raises(PassError, match=r"\(no candidate was found\)"):
            run_pipeline(two_linears(), (Stage(reporting(0), times(1)),), pass_options())

    def test_stops_at_the_first_failure_and_tidies_in_between(self) -> None:
        graph = two_linears()
        seen = []

        def drop_second(graph: StepGraph, options: PassOptions) -> PassReport:
            graph.set_outputs({"first": graph.outputs["first"]})
            return PassReport("drop_second", 1)

        def look(graph: StepGraph, options: PassOptions) -> PassReport:
            seen.append((operators(graph), sorted(graph.weights)))
            return PassReport("look", 0)

        stages = (Stage(drop_second, times(1)), Stage(look, times(1)), Stage(look, times(0)))
        with pytest.raises(PassError, match="look fired 0 times"):
            run_pipeline(graph, stages, pass_options())
        assert seen == [(["linear"], ["a.weight"])]


class TestStepGraph:
    def test_tidy_drops_what_reaches_no_output(self) -> None:
        graph = two_linears()
        graph.set_outputs({"second": graph.outputs["second"]})
        assert graph.tidy() == 2
        assert (operators(graph), list(graph.weights), list(graph.inputs)) == (["linear"], ["b.weight"], ["x"])
        assert graph.tidy() == 0

    def test_tidy_keeps_inputs_nobody_reads(self) -> None:
        build = GraphBuilder()
        x = build.input("x", 2, 3)
        build.input("unused", 2)
        graph = build.finish(y=build.call(aten.silu.default, x))
        graph.tidy()
        assert list(graph.inputs) == ["x", "unused"]

    def test_a_copy_is_independent(self, captured: StepGraph) -> None:
        before = listing(captured)
        for role, stages in PIPELINES[Target.ONNXRUNTIME].items():
            copy = captured.copy()
            assert listing(copy) == before
            run_pipeline(copy, stages, pass_options(role))
            assert listing(copy) != before
            assert listing(captured) == before
        assert all(not layout.transposed for layout in captured.weights.values())

    def test_a_copy_keeps_the_shapes_of_the_original(self, captured: StepGraph) -> None:
        shapes = {node.name: node.meta[NODE_VALUE].shape for node in captured.weight_nodes()}
        run_pipeline(captured.copy(), PIPELINES[Target.ONNXRUNTIME][Role.DRAFT], pass_options(Role.DRAFT))
        assert {node.name: node.meta[NODE_VALUE].shape for node in captured.weight_nodes()} == shapes

    def test_a_weight_exists_once(self) -> None:
        graph = two_linears()
        again = graph.add_weight("a.weight", WeightLayout(("a.weight",), False, "float64"), torch.empty(4, 3, device="meta"))
        assert again is graph.calls(aten.linear.default)[0].args[1]
        assert len(graph.weight_nodes()) == 2

    def test_a_name_stands_for_one_layout(self) -> None:
        other = WeightLayout(("b.weight",), False, "float64")
        with pytest.raises(PassError, match=r"a\.weight: laid out as"):
            two_linears().add_weight("a.weight", other, torch.empty(4, 3, device="meta"))

    def test_calls_infer_their_result(self) -> None:
        graph = two_linears()
        first = graph.outputs["first"]
        pieces = graph.pieces(graph.call(first.next, aten.split_with_sizes.default, first, [1, 3], -1))
        assert [tuple(piece.meta[NODE_VALUE].shape) for piece in pieces] == [(2, 1), (2, 3)]
        assert operators(graph) == ["linear", "split_with_sizes", "getitem", "getitem", "linear"]
        assert [node.args[1] for node in graph.calls(operator.getitem)] == [0, 1]

    def test_run_follows_names_and_not_order(self) -> None:
        graph = two_linears()
        parameters, inputs = random_parameters(graph), random_inputs(graph)
        outputs = run_graph(graph, dict(reversed(parameters.items())), inputs)
        assert list(outputs) == ["first", "second"]
        torch.testing.assert_close(outputs["second"], inputs["x"] @ parameters["b.weight"].t(), **EXACT)

    def test_counts_calls_of_several_graphs(self) -> None:
        assert num_calls([two_linears(), two_linears()]) == 4

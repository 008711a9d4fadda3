"""quantize_linears and emulate_quantization: layers of the recipe take codes and scales, and keep their meaning."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, fx

from nemodiff_trt.bundle import Encoding, WeightLayout
from nemodiff_trt.bundle.encoding import MatrixEncoder, QuantizedScales
from nemodiff_trt.passes.base import PassOptions, run_pipeline
from nemodiff_trt.passes.emulate_quantization import emulate_quantization
from nemodiff_trt.passes.graph import StepGraph
from nemodiff_trt.passes.pipelines import PIPELINES
from nemodiff_trt.passes.quantize_linears import quantize_linears
from nemodiff_trt.quantization.formats import fp8_scale, nvfp4_global_scale, pack_fp8, pack_nvfp4
from nemodiff_trt.quantization.recipe import Recipe
from nemodiff_trt.vocabulary import LinearFormat, Role, Target
from support.graphs import GraphBuilder, listing, operators, pass_options

Q_PROJ, K_PROJ = "encoder.layers.0.self_attn.q_proj", "encoder.layers.0.self_attn.k_proj"
AMAX = 3.5
FORMATS = list(LinearFormat)


def options(form: LinearFormat | None, role: Role = Role.VERIFY) -> PassOptions:
    return pass_options(role, recipe=Recipe(form))


def graph_of(name: str = Q_PROJ) -> StepGraph:
    """One fused layer [12,32] over x [2,3,32]."""
    build = GraphBuilder(torch.float32)
    x = build.input("x", 2, 3, 32)
    layout = WeightLayout((f"{name}.weight", f"{K_PROJ}.weight"), False, "float32")
    weight = build.weight("fused", 12, 32, layout=layout)
    return build.finish(y=build.call(torch.ops.aten.linear.default, x, weight))


def sources() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(8, 32, generator=generator), 3 * torch.randn(4, 32, generator=generator)]


def run(graph: StepGraph, x: Tensor) -> Tensor:
    encoder = MatrixEncoder(QuantizedScales(lambda _: AMAX))
    stored = {}
    for node in graph.weight_nodes():
        layout = graph.weights[str(node.target)]
        value = torch.cat(sources())
        if layout.encoding is not Encoding.PLAIN:
            value = torch.cat(list(encoder.blocks(layout, sources())))
        stored[str(node.target)] = value.reshape(node.meta["val"].shape)
    return graph.run(stored, {"x": x})["y"]


@pytest.mark.parametrize("form", FORMATS)
def test_fires(form: LinearFormat) -> None:
    graph = graph_of()
    report = quantize_linears(graph, options(form))
    graph.tidy()
    assert (report.count, report.refusals) == (1, ())
    assert operators(graph) == [f"{form}_linear"]
    assert {layout.encoding.linear_format for layout in graph.weights.values()} == {form}
    assert all(layout.sources == (f"{Q_PROJ}.weight", f"{K_PROJ}.weight") for layout in graph.weights.values())
    assert emulate_quantization(graph, options(form)).count == 1
    graph.tidy()
    assert operators(graph) == [f"round_to_{form}", "linear"]
    assert len(graph.weights) == 2


@pytest.mark.parametrize("form", FORMATS)
def test_both_forms_give_the_quantised_product(form: LinearFormat) -> None:
    x = torch.randn(2, 3, 32, generator=torch.Generator().manual_seed(1))
    amax = torch.stack([source.abs().max() for source in sources()]).max()
    pack, scale = {LinearFormat.FP8: (pack_fp8, fp8_scale), LinearFormat.NVFP4: (pack_nvfp4, nvfp4_global_scale)}[form]
    matrix = torch.cat([pack(source, amax).dequantize() for source in sources()])
    rounded = getattr(torch.ops.nemodiff, f"round_to_{form}")(x, scale(torch.tensor(AMAX)))
    expected = torch.nn.functional.linear(rounded, matrix)
    graph = graph_of()
    quantize_linears(graph, options(form))
    graph.tidy()
    assert torch.equal(run(graph, x), expected)
    emulate_quantization(graph, options(form))
    graph.tidy()
    assert torch.equal(run(graph, x), expected)
    plain = torch.nn.functional.linear(x, torch.cat(sources()))
    assert not torch.allclose(expected, plain, rtol=1e-3)


def test_layers_without_a_format_are_left_alone() -> None:
    graph = graph_of()
    before = listing(graph)
    for each in (options(None), pass_options()):
        assert quantize_linears(graph, each).count == 0
    assert emulate_quantization(graph, options(None)).count == 0
    assert listing(graph) == before


def has_a_bias(build: GraphBuilder, x: fx.Node) -> fx.Node:
    return build.call(torch.ops.aten.linear.default, x, build.weight("w", 5, 32), build.weight("bias", 5))


def computes_its_weight(build: GraphBuilder, x: fx.Node) -> fx.Node:
    return build.call(torch.ops.aten.linear.default, x, build.call(torch.ops.aten.mul.Tensor, build.weight("w", 5, 32), 2.0))


def is_transposed(build: GraphBuilder, x: fx.Node) -> fx.Node:
    layout = WeightLayout((f"{Q_PROJ}.weight",), True, "float32")
    return build.call(torch.ops.aten.linear.default, x, build.weight("w", 5, 32, layout=layout))


@pytest.mark.parametrize(
    ("write", "reason"),
    [
        (has_a_bias, "the layer has a bias"),
        (computes_its_weight, "its matrix is not a stored weight"),
        (is_transposed, "its matrix is already stored in a form of its own"),
    ],
)
def test_refuses(write: object, reason: str) -> None:
    build = GraphBuilder(torch.float32)
    x = build.input("x", 2, 3, 32)
    graph = build.finish(y=write(build, x))  # type: ignore[operator]
    before = listing(graph)
    report = quantize_linears(graph, options(LinearFormat.FP8))
    assert (report.count, [refusal.reason for refusal in report.refusals]) == (0, [reason])
    assert listing(graph) == before


@pytest.mark.parametrize("form", FORMATS)
def test_a_second_run_changes_nothing(form: LinearFormat) -> None:
    graph = graph_of()
    for each in (quantize_linears, emulate_quantization):
        each(graph, options(form))
        graph.tidy()
        before = listing(graph)
        assert each(graph, options(form)).count == 0
        assert listing(graph) == before


@pytest.mark.parametrize("role", list(PIPELINES[Target.ONNXRUNTIME]))
def test_pipelines_fire_as_often_as_the_recipe_says(captured: StepGraph, role: Role) -> None:
    """Fused qkv, o, gate|up and down in two layers; the head and the drafter's branch when they are named."""
    for overrides, expected in (({}, 8), ({"*.0.*": "none", "diffusion_head": "fp8", "*.lora_A": "fp8"}, 5)):
        recipe = Recipe.from_dict({"format": "nvfp4", "overrides": overrides})
        graph = captured.copy()
        reports = run_pipeline(graph, PIPELINES[Target.TENSORRT_RTX][role], pass_options(role, recipe=recipe))
        (report,) = (report for report in reports if report.name == "quantize_linears")
        branches = 2 if overrides and role.uses_adapter else 0
        assert report.count == expected + branches

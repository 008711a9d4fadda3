"""Plugins of the full TensorRT, which cannot be installed everywhere: on a stand-in for its plugin API."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from nemodiff_trt.build_engines.capture import capture_step
from nemodiff_trt.build_engines.lowering.network import lower_to_network
from nemodiff_trt.build_engines.report import realised_operators
from nemodiff_trt.contract import CONFIDENCE, TOKEN
from nemodiff_trt.errors import LoweringError
from nemodiff_trt.passes.base import run_pipeline
from nemodiff_trt.passes.pipelines import PIPELINES
from nemodiff_trt.plugins.aot_plugin import without_scratch
from nemodiff_trt.plugins.decision_head import decision_head_reference
from nemodiff_trt.plugins.decision_head.plugin_form import COMBINE, PART, decision_head_plugin
from nemodiff_trt.plugins.decision_head.triton_form import builds_for
from nemodiff_trt.plugins.network_emitter import NetworkEmitter
from nemodiff_trt.plugins.realisations import plugin_operators
from nemodiff_trt.vocabulary import Precision, Role, Target
from support.checkpoints import tiny_config
from support.fake_plugin_api import FakePluginApi, NetworkTensor, NetworkWithPlugins, PluginNetwork, WithPlugins
from support.graphs import pass_options
from support.interpreter import Interpreter
from support.rtx_networks import require_tensorrt_rtx

MASK = 100


def placed(step: int, vocab_size: int, sm: int = 100) -> tuple[PluginNetwork, NetworkTensor, tuple[Any, Any]]:
    """A network of one decision head."""
    network = PluginNetwork()
    logits = NetworkTensor((-1, step, vocab_size), "bfloat16")
    outputs = decision_head_plugin(NetworkEmitter(FakePluginApi(), network, sm), logits, MASK)
    return network, logits, outputs


@pytest.mark.parametrize(("step", "vocab_size", "part"), [(1, 5000, 1024), (-1, 9001, 4096)])
def test_the_plugins_decide_as_the_reference(
    interpreter: Interpreter, random: torch.Generator, step: int, vocab_size: int, part: int
) -> None:
    network, logits, outputs = placed(step, vocab_size)
    builds = {build.kernel.__name__: build for build in builds_for("bf16", part, vocab_size)}

    def launch(kernel: str, grid: int, arguments: list[Any]) -> list[Any]:
        build = builds[kernel]
        assert len(arguments) == len(build.types)
        return interpreter.run(build.kernel, (grid,), arguments, dict(build.constants))

    values = torch.randn(2, abs(step) * 3 if step < 0 else 1, vocab_size, generator=random).bfloat16()
    values[0, 0, [7, 2000, MASK]] = torch.tensor([9.0, 9.0, 20.0]).bfloat16()
    found = network.run({logits: values}, launch)
    token, confidence = decision_head_reference(values, MASK)
    assert torch.equal(found[outputs[0]], token)
    torch.testing.assert_close(found[outputs[1]], confidence, rtol=2e-5, atol=0)
    # Every program of the grid is one part of one row.
    assert network.layers[0].launch.grid_x.evaluate([(2, 3, vocab_size)]) == 6 * -(-vocab_size // part)
    assert network.layers[1].launch.grid_x.evaluate([(2, 3, vocab_size)]) == 6


@pytest.mark.parametrize("sm", [90, 121])
def test_the_code_of_a_plugin_takes_what_tensorrt_binds(tmp_path: Path, sm: int) -> None:
    import triton

    network, _, _ = placed(1, 131_072, sm)
    for layer, plugin, num_numbers in zip(network.layers, (PART, COMBINE), (3, 3), strict=True):
        assert f".target sm_{sm}a" in layer.ptx
        source, cubin = tmp_path / f"{layer.kernel}.ptx", tmp_path / f"{layer.kernel}.cubin"
        source.write_text(layer.ptx)
        # It is still complete: the assembler takes it, and finds as many parameters as TensorRT binds.
        subprocess.run([triton.knobs.nvidia.ptxas.path, f"-arch=sm_{sm}a", source, "-o", cubin], check=True)
        listing = subprocess.run(
            [triton.knobs.nvidia.cuobjdump.path, "-elf", cubin], check=True, capture_output=True, text=True
        ).stdout
        assert (
            len(set(re.findall(r"Ordinal\s*:\s*(0x[0-9a-f]+)", listing)))
            == len(plugin.inputs) + num_numbers + plugin.num_outputs
        )


def test_a_whole_step_with_plugins() -> None:
    """The network of a decode step for the full TensorRT, written with TensorRT-RTX."""
    trt = require_tensorrt_rtx()
    config = tiny_config(head_dim=32)
    graph = capture_step(config, torch.bfloat16, 64)
    options = pass_options(
        Role.DECODE,
        model=config,
        precision=Precision.BF16,
        cache_capacity=64,
        plugins=plugin_operators(Target.TENSORRT),
    )
    run_pipeline(graph, PIPELINES[Target.TENSORRT][Role.DECODE], options)
    network = NetworkWithPlugins(trt.Builder(trt.Logger(trt.Logger.ERROR)).create_network(0))
    lower_to_network(WithPlugins(trt), network, graph, {"K": 64, "S": 1}, plugin_sm=100)
    assert [layer.kernel for layer in network.plugins] == ["decision_head_part", "decision_head_combine"]
    assert {network.get_output(index).name for index in range(network.num_outputs)} >= {TOKEN, CONFIDENCE}
    realised = realised_operators([graph], Target.TENSORRT)
    assert realised["decision_head"] == "plugin"
    assert set(realised.values()) == {"plugin", "native layers"}


def test_plugins_are_registered_once() -> None:
    api = FakePluginApi()
    for _ in range(2):
        network = PluginNetwork()
        decision_head_plugin(NetworkEmitter(api, network, 100), NetworkTensor((-1, 1, 200), "float32"), MASK)
        assert len(network.layers) == 2


def test_a_target_without_plugins_is_refused() -> None:
    with pytest.raises(LoweringError, match="no plugins, decision_head_part needs them"):
        decision_head_plugin(NetworkEmitter(FakePluginApi(), PluginNetwork()), NetworkTensor((-1, 1, 200), "float32"), MASK)


KERNEL = (
    ".visible .entry f(\n\t.param .u64 f_param_0,\n\t.param .u64 f_param_1\n)\n{{\n\tld.param.b64 %rd1, [f_param_{used}];\n}}\n"
)


def test_scratch_that_is_used_cannot_be_cut_off() -> None:
    assert "f_param_1" not in without_scratch(KERNEL.format(used=0), 1)
    assert without_scratch(KERNEL.format(used=1), 2) == KERNEL.format(used=1)
    with pytest.raises(LoweringError, match="f needs scratch memory"):
        without_scratch(KERNEL.format(used=1), 1)
    with pytest.raises(LoweringError, match="0 kernels"):
        without_scratch("", 1)

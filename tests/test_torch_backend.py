"""torch.compile with the project's backend: the passes fire, the outputs are those of the eager decoder, S is dynamic."""

from __future__ import annotations

import tomllib
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, fx

from nemodiff_trt.build_engines.torch_backend import PASSES, Rewritten, nemodiff_backend, rewrite_module
from nemodiff_trt.model import TriModeDecoder
from support.checkpoints import random_decoder, tiny_config

CAPACITY = 64
# fp32 sums of at most 96 products in another order; logits are of the order of ten.
ROUNDING = {"rtol": 0, "atol": 2e-5}

Step = tuple[Tensor, Tensor, list[Tensor], list[Tensor]]


@pytest.fixture(scope="module")
def decoder() -> TriModeDecoder:
    return random_decoder(tiny_config(), CAPACITY)


def step(lengths: tuple[int, ...], num_tokens: int, seed: int = 0) -> Step:
    generator = torch.Generator().manual_seed(seed)
    shape = (len(lengths), 2, CAPACITY, 16)
    keys, values = ([torch.randn(shape, generator=generator) for _ in range(2)] for _ in range(2))
    ids = torch.randint(400, (len(lengths), num_tokens), generator=generator)
    return ids, torch.tensor(lengths), keys, values


def traced(decoder: TriModeDecoder, inputs: Step) -> tuple[Rewritten, list[Any]]:
    """What the backend makes of the graph of one step, and the inputs of that graph."""
    found: list[tuple[Rewritten, list[Any]]] = []

    def keep(module: fx.GraphModule, example_inputs: list[Any]) -> Any:
        found.append((rewrite_module(module, example_inputs), example_inputs))
        return module.forward

    torch.compiler.reset()
    torch.compile(decoder, backend=keep, fullgraph=True)(*inputs)
    return found[0]


def assert_equal_steps(ours: tuple[Any, ...], right: tuple[Any, ...]) -> None:
    torch.testing.assert_close(ours[0], right[0], **ROUNDING)
    torch.testing.assert_close(ours[1] + ours[2], right[1] + right[2], **ROUNDING)


def test_passes_fire(decoder: TriModeDecoder) -> None:
    rewritten, _ = traced(decoder, step((3, 10), 4))
    # Two layers with seven operators each, positions and the final norm.
    assert [(report.name, report.count) for report in rewritten.reports] == [
        ("fuse_qkv", 2),
        ("fuse_gate_up", 2),
        ("decompose_plugins", 16),
    ]
    joined = sorted(name.rpartition("_modules_")[2] for name, _ in rewritten.module.named_buffers())
    assert joined == ["gate_up_proj_parameters_weight_"] * 2 + ["qkv_proj_parameters_weight_"] * 2


def test_rewritten_graph_equals_the_decoder(decoder: TriModeDecoder) -> None:
    inputs = step((3, 40), 5)
    rewritten, examples = traced(decoder, inputs)
    found = rewritten.module(*examples)
    logits, keys, values = decoder(*inputs)
    assert_equal_steps((found[0], list(found[1:3]), list(found[3:5])), (logits, keys, values))


def test_compiled_steps_equal_the_decoder(decoder: TriModeDecoder) -> None:
    torch.compiler.reset()
    counts: list[int] = []

    def counting(module: fx.GraphModule, example_inputs: list[Any]) -> Any:
        counts.append(len(example_inputs))
        return nemodiff_backend(module, example_inputs)

    compiled = torch.compile(decoder, backend=counting)
    for lengths, num_tokens in (((3, 10), 4), ((3, 40), 7), ((0, CAPACITY - 5), 5)):
        inputs = step(lengths, num_tokens, seed=num_tokens)
        torch._dynamo.maybe_mark_dynamic(inputs[0], 1)
        before = [tensor.clone() for tensor in (*inputs[2], *inputs[3])]
        assert_equal_steps(compiled(*inputs), decoder(*inputs))
        # Functional, as the decoder itself.
        assert all(torch.equal(old, new) for old, new in zip(before, (*inputs[2], *inputs[3]), strict=True))
    assert len(counts) == 1, "one program for all step lengths"


def test_another_model_is_left_alone() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.SiLU()).requires_grad_(False)
    found: list[Rewritten] = []

    def keep(module: fx.GraphModule, example_inputs: list[Any]) -> Any:
        found.append(rewrite_module(module, example_inputs))
        return found[0].module.forward

    x = torch.randn(2, 4)
    torch.compiler.reset()
    torch.testing.assert_close(torch.compile(model, backend=keep)(x), model(x))
    assert [report.count for report in found[0].reports] == [0] * len(PASSES)


def test_parameters_in_training_are_refused() -> None:
    torch.compiler.reset()
    decoder = random_decoder(tiny_config(), CAPACITY).requires_grad_(True)
    with pytest.raises(Exception, match="allowed: a frozen decoder"):
        torch.compile(decoder, backend=nemodiff_backend)(*step((3,), 2))


def test_the_backend_is_found_by_name() -> None:
    project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    entry = project["entry-points"]["torch_dynamo_backends"]["nemodiff"]
    assert metadata.EntryPoint("nemodiff", entry, "torch_dynamo_backends").load() is nemodiff_backend
    # Present once this version of the project is installed.
    assert "nemodiff" in torch.compiler.list_backends()

"""Each `nemodiff::` operator keeps the promises torch needs to capture it: schema, fake kernel, dynamic shapes."""

from __future__ import annotations

import pytest
import torch

from nemodiff_trt.plugins import OPS
from nemodiff_trt.quantization.formats import pack_fp8, pack_nvfp4

B, S, H, G, D, K, V = 2, 3, 4, 2, 8, 12, 24


def arguments(dtype: torch.dtype) -> dict[str, tuple[object, ...]]:
    """Arguments for every operator of the table, for a step of S tokens after 1 and 5 cached ones."""
    generator = torch.Generator().manual_seed(0)

    def rand(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    def ids(*shape: int, high: int = V) -> torch.Tensor:
        return torch.randint(0, high, shape, generator=generator)

    fp8, nvfp4 = pack_fp8(rand(16, 32)), pack_nvfp4(rand(16, 32))
    length = torch.tensor([1, 5])
    positions = length[:, None] + torch.arange(S)
    return {
        "rms_norm": (rand(B, S, 16), rand(16), 1e-5),
        "step_positions": (torch.zeros(B, S, dtype=torch.int64), length),
        "rotary": (rand(B, S, H * D), rand(K, D // 2), rand(K, D // 2), positions, H),
        "cache_update": (rand(B, G, K, D), rand(B, S, G * D), length),
        "attention": (rand(B, S, H * D), rand(B, G, K, D), rand(B, G, K, D), length, H, True),
        "masked_attention": (rand(B, S, H * D), rand(B, G, K, D), rand(B, G, K, D), length, torch.rand(B, S, S) < 0.5, H),
        "select_position": (rand(B, S, 16), torch.tensor([2, 0])),
        "decision_head": (rand(B, S, V), 7),
        "decision_top_k": (rand(B, S, V), 7, 3),
        "next_block": (ids(B), S, 7),
        # Probabilities are fp32 whatever the logits are.
        "commit_masks": (ids(B, S, high=3), ids(B, S), torch.rand(B, S, generator=generator), torch.tensor([1, 0]), 1, 2, 0.5),
        "accept_draft": (ids(B, S, high=3), ids(B, S, high=3), length, torch.tensor([9, 0]), torch.tensor([1, 2])),
        "accept_draft_sampled": (
            ids(B, S),
            rand(B, S - 1, V).float().softmax(-1),
            rand(B, S, V).float().softmax(-1),
            torch.rand(B, S, generator=generator),
            length,
            torch.tensor([9, 0]),
            torch.tensor([1, 2]),
        ),
        "fp8_linear": (rand(B, S, 32), fp8.values, fp8.scale, torch.tensor(0.01)),
        "nvfp4_linear": (rand(B, S, 32), nvfp4.payload, nvfp4.block_scales, nvfp4.global_scale, torch.tensor(0.01)),
        "round_to_fp8": (rand(B, S, 32), torch.tensor(0.01)),
        "round_to_nvfp4": (rand(B, S, 32), torch.tensor(0.01)),
    }


@pytest.mark.parametrize("name", [op.name for op in OPS])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_operator_can_be_captured(name: str, dtype: torch.dtype) -> None:
    # torch cannot compare FP8 tensors, which its check for hidden writes would have to.
    utils = ("test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
    utils = utils if name in ("fp8_linear", "nvfp4_linear") else ("test_schema", *utils)
    torch.library.opcheck(getattr(torch.ops.nemodiff, name).default, arguments(dtype)[name], test_utils=utils)


def test_every_operator_of_the_namespace_is_in_the_table() -> None:
    registered = {name.split("::")[1].split(".")[0] for name in torch._C._dispatch_get_all_op_names() if "nemodiff::" in name}
    assert registered == {op.name for op in OPS}


def test_the_check_can_fail() -> None:
    with torch.library._scoped_library("nemodiff_test", "FRAGMENT") as library:
        library.define("double(Tensor x) -> Tensor")
        library.impl("double", lambda x: x * 2, "CPU")
        library.impl("double", lambda x: x.new_empty(1), "Meta")
        with pytest.raises(Exception, match=r"[Ff]ake"):
            torch.library.opcheck(torch.ops.nemodiff_test.double.default, (torch.ones(3),))

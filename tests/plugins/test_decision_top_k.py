"""The best tokens of a row: reference, Triton kernels and ONNX form against float64, on random and adversarial logits."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from nemodiff_trt.plugins.decision_head import decision_head_reference
from nemodiff_trt.plugins.decision_top_k import decision_top_k_reference
from support.interpreter import Interpreter
from support.operator_engines import OnnxOperator, Signature, rtx_plan

MASK = 100
INF, NAN = math.inf, math.nan


def exact(logits: Tensor, k: int, mask_token_id: int = MASK) -> tuple[Tensor, Tensor, Tensor]:
    """The definition in float64, one token after the other: independent of the reference's own sort and softmax."""
    wide = logits.double()
    candidates = wide.clone()
    # Below -inf there is no number: what was taken is marked apart.
    taken = torch.zeros_like(wide, dtype=torch.bool)
    taken[..., mask_token_id] = True
    tokens = []
    for _ in range(k):
        largest = torch.where(taken, -INF, candidates).amax(-1, keepdim=True)
        token = ((candidates == largest) & ~taken).int().argmax(-1, keepdim=True)
        taken.scatter_(-1, token, True)
        tokens.append(token)
    token = torch.cat(tokens, -1)
    p = wide.softmax(-1)
    entropy = -torch.where(p > 0, p * p.log(), 0.0).sum(-1)
    return token, p.gather(-1, token), entropy


def check(found: tuple[Tensor, ...], logits: Tensor, k: int, mask_token_id: int = MASK, slack: float = 2e-5) -> None:
    token, probability, entropy = exact(logits, k, mask_token_id)
    assert [value.dtype for value in found] == [torch.int64, torch.float32, torch.float32]
    assert torch.equal(found[0], token)
    torch.testing.assert_close(found[1].double(), probability, rtol=slack, atol=1e-30)
    # Differences of two sums of the size of log V.
    torch.testing.assert_close(found[2].double(), entropy, rtol=slack, atol=slack)


@pytest.mark.parametrize(
    ("rows", "vocab_size", "k", "dtype"),
    [(9, 1000, 8, torch.float32), (2, 32_768, 4, torch.float16), (1, 131_072, 2, torch.bfloat16)],
)
def test_random_logits(
    interpreter: Interpreter, random: torch.Generator, rows: int, vocab_size: int, k: int, dtype: torch.dtype
) -> None:
    logits = (torch.randn(1, rows, vocab_size, generator=random) * 6).to(dtype)
    check(decision_top_k_reference(logits, MASK, k), logits, k)
    check(interpreter.launch("decision_top_k", logits, MASK, k), logits, k)


def hard_rows(random: torch.Generator) -> Tensor:
    noise = torch.randn(3000, generator=random)
    minus = torch.full((3000,), -INF)
    one, two = minus.clone(), minus.clone()
    one[1500], two[[7, 2999]] = 3.0, torch.tensor([1.0, 2.0])
    zeros = two.clone()
    zeros[[5, 2000]] = torch.tensor([-0.0, 0.0])
    tied, mask_wins, mask_is_nothing = noise.clamp(max=1), noise.clone(), noise.clone()
    mask_wins[MASK], mask_is_nothing[MASK] = 200.0, -INF
    return torch.stack((tied, torch.zeros(3000), one, two, zeros, mask_wins, mask_is_nothing, noise * 100, noise - 1e5))[None]


def test_hard_rows(interpreter: Interpreter, random: torch.Generator) -> None:
    logits = hard_rows(random)
    onnx = OnnxOperator(Signature("decision_top_k", [("float32", ("B", "S", 3000))], (MASK, 4)))
    reference, kernel = decision_top_k_reference(logits, MASK, 4), interpreter.launch("decision_top_k", logits, MASK, 4)
    for form, found in {"reference": reference, "kernel": kernel, "onnx": onnx(logits)}.items():
        for index in range(logits.shape[1]):
            row = logits[:, index : index + 1]
            # Both but the kernel subtract an fp32 logarithm of the size of the logits; ONNX Runtime adds one term after the
            # other, so that beside a sum of 1 each of 3,000 terms may lose half a unit of its last place.
            subtracted = 0.0 if form == "kernel" else 2e-7 * float(row[row.isfinite()].abs().max())
            slack = max(3000 * 2**-24 if form == "onnx" else 2e-5, subtracted)
            check(tuple(value[:, index : index + 1] for value in found), row, 4, slack=slack)
    few, many = logits[:, :8].contiguous(), logits[:, :9]
    for found, wanted in zip(
        interpreter.launch("decision_top_k", few, MASK, 4), interpreter.launch("decision_top_k", many, MASK, 4), strict=True
    ):
        # Few rows are cut into smaller parts.
        torch.testing.assert_close(found, wanted[:, :8], rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("mask", [0, 6])
def test_every_token_but_the_mask(interpreter: Interpreter, random: torch.Generator, mask: int) -> None:
    logits = torch.randn(1, 2, 7, generator=random)
    check(interpreter.launch("decision_top_k", logits, mask, 6), logits, 6, mask)
    check(OnnxOperator(Signature("decision_top_k", [("float32", ("B", "S", 7))], (mask, 6)))(logits), logits, 6, mask)


def test_rows_that_are_no_distribution(interpreter: Interpreter) -> None:
    base = torch.linspace(-1, 1, 2000)
    rows = {name: base.clone() for name in ("inf", "nan", "mask is inf", "mask is nan")}
    rows["inf"][1500], rows["nan"][1100] = INF, NAN
    rows["mask is inf"][MASK], rows["mask is nan"][MASK] = INF, NAN
    rows["nothing"] = torch.full((2000,), -INF)
    logits = torch.stack(list(rows.values()))[None]
    tokens = torch.tensor([[[1500, 1999], [1100, 1999], [1999, 1998], [1999, 1998], [0, 1]]])
    probabilities = torch.tensor([[[NAN, 0.0], [NAN, NAN], [0.0, 0.0], [NAN, NAN], [NAN, NAN]]])
    onnx = OnnxOperator(Signature("decision_top_k", [("float32", ("B", "S", 2000))], (MASK, 2)))(logits)
    has_nan = logits.isnan().any(-1)
    for token, probability, entropy in (
        decision_top_k_reference(logits, MASK, 2),
        interpreter.launch("decision_top_k", logits, MASK, 2),
    ):
        assert torch.equal(token, tokens)
        torch.testing.assert_close(probability, probabilities, rtol=0, atol=0, equal_nan=True)
        assert entropy.isnan().all()
    # ONNX does not say where a NaN comes in `TopK`.
    assert torch.equal(onnx[0][~has_nan], tokens[~has_nan])
    torch.testing.assert_close(onnx[1][~has_nan], probabilities[~has_nan], rtol=0, atol=0, equal_nan=True)
    assert ((onnx[0] >= 0) & (onnx[0] < 2000)).all()
    assert onnx[2].isnan().all()


def test_the_first_is_what_the_head_decides(random: torch.Generator) -> None:
    logits = hard_rows(random)
    (token, confidence), ranked = decision_head_reference(logits, MASK), decision_top_k_reference(logits, MASK, 3)
    assert torch.equal(ranked[0][..., 0], token)
    assert torch.equal(ranked[1][..., 0], confidence)


@pytest.mark.parametrize(
    ("vocab_size", "k", "reason"),
    [(8, 0, "1 to 7 are taken"), (8, 8, "1 to 7 are taken"), (40_000, 300, "204 are taken at most")],
)
def test_refusals(interpreter: Interpreter, vocab_size: int, k: int, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        interpreter.launch("decision_top_k", torch.zeros(1, 2, vocab_size), 0, k)


def test_network_form_is_taken() -> None:
    signature = Signature("decision_top_k", [("bfloat16", ("B", "S", 1000))], (MASK, 4))
    assert rtx_plan(signature, {"B": 1, "S": 1}, {"B": 4, "S": 32})

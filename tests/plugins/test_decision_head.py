"""The decision head: reference, Triton kernels and ONNX form against float64, on random and adversarial logits."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from nemodiff_trt.plugins.decision_head import decision_head_reference
from support.interpreter import Interpreter
from support.operator_engines import OnnxOperator, Signature, rtx_plan

MASK = 100
INF, NAN = math.inf, math.nan


def exact(logits: Tensor, mask_token_id: int = MASK) -> tuple[Tensor, Tensor]:
    """The definition in float64, one id after the other: independent of the reference's own argmax and softmax."""
    wide = logits.double()
    ids = torch.tensor([i for i in range(wide.shape[-1]) if i != mask_token_id])
    largest = wide[..., ids].amax(-1, keepdim=True)
    token = ids[(wide[..., ids] == largest).int().argmax(-1)]
    return token, 1 / torch.exp(wide - largest).sum(-1)


def check(found: tuple[Tensor, ...], logits: Tensor, mask_token_id: int = MASK) -> None:
    token, confidence = exact(logits, mask_token_id)
    assert found[0].dtype == torch.int64
    assert found[1].dtype == torch.float32
    assert torch.equal(found[0], token)
    # fp32 sums of up to 131,072 terms, in parts.
    torch.testing.assert_close(found[1].double(), confidence, rtol=2e-5, atol=1e-30)


@pytest.mark.parametrize(("rows", "vocab_size"), [(3, 1000), (2, 32_768), (1, 131_072)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_random_logits(
    interpreter: Interpreter, random: torch.Generator, rows: int, vocab_size: int, dtype: torch.dtype
) -> None:
    logits = (torch.randn(rows, 1, vocab_size, generator=random) * 6).to(dtype)
    check(decision_head_reference(logits, MASK), logits)
    check(interpreter.launch("decision_head", logits, MASK), logits)


@pytest.mark.parametrize("vocab_size", [1, 2, 7, 1023, 1024, 1025, 4097])
def test_vocabularies_that_no_block_divides(interpreter: Interpreter, random: torch.Generator, vocab_size: int) -> None:
    logits = torch.randn(2, 5, vocab_size, generator=random)
    mask = vocab_size - 1
    if vocab_size > 1:
        check(interpreter.launch("decision_head", logits, mask), logits, mask)
    for found, wanted in zip(
        interpreter.launch("decision_head", logits, mask), decision_head_reference(logits, mask), strict=True
    ):
        torch.testing.assert_close(found, wanted, equal_nan=True)


@pytest.mark.slow
@pytest.mark.parametrize("vocab_size", [32_768, 131_072])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_whole_blocks(interpreter: Interpreter, random: torch.Generator, vocab_size: int, dtype: torch.dtype) -> None:
    logits = (torch.randn(2, 32, vocab_size, generator=random) * 6).to(dtype)
    check(interpreter.launch("decision_head", logits, MASK), logits)


def adversarial(random: torch.Generator) -> dict[str, Tensor]:
    """Rows [6000] that are distributions, and hard."""
    noise = torch.randn(6000, generator=random)
    tied, late_tie, mask_wins, mask_drowns = noise.clamp(max=2), noise.clone(), noise.clone(), noise.clone()
    tied[[17, 4096, 5999]] = 3.0
    late_tie[[3000, 5998]] = 9.0
    mask_wins[MASK], mask_drowns[MASK] = 20.0, 300.0
    minus = torch.full((6000,), -INF)
    few = minus.clone()
    few[[4500, 4501]] = torch.tensor([1.0, 2.0])
    zeros = minus.clone()
    zeros[[5, 4000]] = torch.tensor([-0.0, 0.0])
    return {
        "tied": tied,
        "tied in the last part": late_tie,
        "all equal": torch.zeros(6000),
        "mask wins": mask_wins,
        "mask drowns the rest": mask_drowns,
        "mask is the only other": torch.where(torch.arange(6000) == MASK, 0.5, few),
        "mask is -inf": torch.where(torch.arange(6000) == MASK, -INF, noise),
        "two ids that are not -inf": few,
        "both zeros tie": zeros,
        "huge": noise * 1e4,
        "far below zero": noise - 1e5,
        "falling": -torch.arange(6000) / 100,
        "rising": torch.arange(6000) / 100,
    }


def test_adversarial_rows(interpreter: Interpreter, random: torch.Generator) -> None:
    rows = adversarial(random)
    logits = torch.stack(list(rows.values()))[None]
    reference, kernel = decision_head_reference(logits, MASK), interpreter.launch("decision_head", logits, MASK)
    onnx = OnnxOperator(Signature("decision_head", [("float32", ("B", "S", 6000))], (MASK,)))(logits)
    for index in range(len(rows)):
        for form, found in {"reference": reference, "kernel": kernel, "onnx": onnx}.items():
            where = f"{form}, {list(rows)[index]}"
            token, confidence = exact(logits[:, index])
            assert torch.equal(found[0][:, index], token), where
            # The reference and the ONNX form subtract two fp32 logarithms of the size of the logits. ONNX Runtime adds one
            # term after the other: beside a sum of 1, terms below half a unit of its last place vanish, 6,000 of them at most.
            scale = float(logits[:, index][logits[:, index].isfinite()].abs().max())
            sums = 6000 * 2**-24 if form == "onnx" else 2e-5
            torch.testing.assert_close(
                found[1][:, index].double(),
                confidence,
                rtol=max(sums, 2e-7 * scale),
                atol=1e-30,
                msg=lambda text, where=where: f"{where}: {text}",
            )


def no_distributions() -> tuple[Tensor, Tensor, Tensor]:
    """Rows [1,n,2000] that are none, with the token and the confidence they are defined to give."""
    base = torch.linspace(-1, 1, 2000)
    rows, tokens, confidences = [], [], []

    def add(changes: dict[int, float], token: int, confidence: float, start: Tensor = base) -> None:
        row = start.clone()
        for index, value in changes.items():
            row[index] = value
        rows.append(row)
        tokens.append(token)
        confidences.append(confidence)

    nothing = torch.full((2000,), -INF)
    add({}, 0, NAN, nothing)
    add({MASK: 1.0}, 0, 0.0, nothing)
    add({1500: INF}, 1500, NAN)
    add({1500: INF, 3: INF}, 3, NAN)
    add({MASK: INF}, 1999, 0.0)
    add({MASK: INF}, 0, 0.0, nothing)
    add({MASK: NAN}, 1999, NAN)
    add({1100: NAN}, 1100, NAN)
    add({1100: NAN, 7: NAN, 50: INF}, 7, NAN)
    add({1999: NAN}, 1999, NAN, nothing)
    return torch.stack(rows)[None], torch.tensor([tokens]), torch.tensor([confidences])


def test_rows_that_are_no_distribution(interpreter: Interpreter) -> None:
    logits, tokens, confidences = no_distributions()
    for token, confidence in (decision_head_reference(logits, MASK), interpreter.launch("decision_head", logits, MASK)):
        assert torch.equal(token, tokens)
        torch.testing.assert_close(confidence, confidences, rtol=0, atol=0, equal_nan=True)


def test_onnx_form_on_rows_that_are_no_distribution() -> None:
    logits, tokens, confidences = no_distributions()
    token, confidence = OnnxOperator(Signature("decision_head", [("float32", ("B", "S", 2000))], (MASK,)))(logits)
    torch.testing.assert_close(confidence, confidences, rtol=0, atol=0, equal_nan=True)
    assert ((token >= 0) & (token < 2000)).all()
    has_nan = logits.isnan().any(-1)
    assert torch.equal(token[~has_nan], tokens[~has_nan])


def test_many_rows_use_large_parts_and_agree_with_few(interpreter: Interpreter, random: torch.Generator) -> None:
    logits = torch.randn(1, 9, 5000, generator=random)
    many = interpreter.launch("decision_head", logits, MASK)
    check(many, logits)
    few = interpreter.launch("decision_head", logits[:, :8].contiguous(), MASK)
    assert torch.equal(many[0][:, :8], few[0])


def test_kernels_can_serve_the_operator(interpreter: Interpreter, random: torch.Generator) -> None:
    logits = torch.randn(1, 2, 300, generator=random)
    check(interpreter.through_torch("decision_head", logits, MASK), logits)
    # What the kernels refuse goes to the reference: float64, a tensor that is not dense.
    check(interpreter.through_torch("decision_head", logits.double(), MASK), logits)
    check(interpreter.through_torch("decision_head", logits.transpose(0, 1), MASK), logits.transpose(0, 1))


@pytest.mark.parametrize(
    ("logits", "mask", "reason"),
    [
        (torch.zeros(1, 2, 8, dtype=torch.float64), 0, "float64"),
        (torch.zeros(0, 2, 8), 0, "shape"),
        (torch.zeros(1, 2, 8), 8, "outside the vocabulary"),
        (torch.zeros(1, 2, 8), -1, "outside the vocabulary"),
        (torch.zeros(1, 8, 2).transpose(1, 2), 0, "not contiguous"),
    ],
)
def test_refusals(interpreter: Interpreter, logits: Tensor, mask: int, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        interpreter.launch("decision_head", logits, mask)


def test_network_form_is_taken() -> None:
    signature = Signature("decision_head", [("bfloat16", ("B", "S", 1000))], (MASK,))
    assert rtx_plan(signature, {"B": 1, "S": 1}, {"B": 4, "S": 32})

"""Operators that keep a cycle on the device: references against the decoding loops, every form against its reference."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from nemodiff_trt.plugins import find_op
from nemodiff_trt.plugins.accept_draft import accept_draft_reference
from nemodiff_trt.plugins.commit_masks import commit_masks_reference
from nemodiff_trt.plugins.next_block import next_block_reference
from nemodiff_trt.runtime.decisions import accept_draft
from nemodiff_trt.runtime.rows.decider import GreedyDecider
from nemodiff_trt.runtime.rows.mask_filling import fix_masks
from nemodiff_trt.runtime.rows.row_decoder import RowOutput
from nemodiff_trt.runtime.rows.self_speculation import SelfSpeculationRow
from nemodiff_trt.runtime.sequence import FinishReason, Sequence
from support.interpreter import Interpreter
from support.operator_engines import OnnxOperator, Signature, rtx_plan

MASK, EOS = 100, 11
Case = tuple[Any, ...]

SIGNATURES = {
    "next_block": Signature("next_block", [("int64", ("B",))], (8, MASK)),
    "commit_masks": Signature(
        "commit_masks",
        [("int64", ("B", "S")), ("int64", ("B", "S")), ("float32", ("B", "S")), ("int64", ("B",))],
        (MASK, EOS, 0.5),
    ),
    "commit_masks by quota": Signature(
        "commit_masks",
        [("int64", ("B", "S")), ("int64", ("B", "S")), ("float32", ("B", "S")), ("int64", ("B",))],
        (MASK, -1, None),
    ),
    "accept_draft": Signature(
        "accept_draft",
        [("int64", ("B", "S")), ("int64", ("B", "S")), ("int64", ("B",)), ("int64", ("B",)), ("int64", (2,))],
    ),
    "accept_draft_sampled": Signature(
        "accept_draft_sampled",
        [
            ("int64", ("B", "S")), ("float32", ("B", "T", 50)), ("float32", ("B", "S", 50)), ("float32", ("B", "S")),
            ("int64", ("B",)), ("int64", ("B",)), ("int64", (2,)),
        ],
    ),
}  # fmt: skip


def case(name: str, random: torch.Generator, batch: int, step: int) -> Case:
    """Random tensors for an operator: few different numbers, so that ties, matches and ends are frequent."""

    def ids(*shape: int, high: int = 3) -> Tensor:
        return torch.randint(0, high, shape, generator=random)

    if name == "next_block":
        return (ids(batch, high=1000),)
    if name == "commit_masks":
        known = torch.tensor([MASK, EOS, 5])
        confidence = ids(batch, step, high=5) / 4
        confidence[ids(batch, step, high=8) == 0] = torch.nan
        return known[ids(batch, step)], known[1:][ids(batch, step, high=2)], confidence, ids(batch, high=step + 2)
    state = (ids(batch, high=50), ids(batch, high=step + 2), torch.tensor([7, 1]))
    if name == "accept_draft":
        verified = ids(batch, step)
        # Mostly right drafts: verified tokens one place to the right.
        block = torch.where(ids(batch, step, high=6) == 0, ids(batch, step), verified.roll(1, 1))
        return block, verified, *state
    p, q = (torch.rand(batch, n, 50, generator=random).softmax(-1) for n in (step, step - 1))
    return ids(batch, step, high=50), q, p, torch.rand(batch, step, generator=random), *state


def check(found: Any, wanted: Any) -> None:
    found, wanted = (value if isinstance(value, tuple) else (value,) for value in (found, wanted))
    assert len(found) == len(wanted)
    for one, other in zip(found, wanted, strict=True):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)


@pytest.mark.parametrize("key", list(SIGNATURES))
def test_kernels_equal_the_references(interpreter: Interpreter, random: torch.Generator, key: str) -> None:
    signature = SIGNATURES[key]
    for batch, step in ((1, 2), (3, 8), (2, 32), (2, 33)):
        tensors = case(signature.name, random, batch, step)
        arguments = (*tensors, *signature.attributes)
        check(interpreter.launch(signature.name, *arguments), find_op(signature.name).reference(*arguments))


@pytest.mark.parametrize("key", list(SIGNATURES))
def test_onnx_forms_equal_the_references(random: torch.Generator, key: str) -> None:
    signature = SIGNATURES[key]
    engine = OnnxOperator(signature)
    for batch, step in ((1, 2), (3, 8), (2, 32), (5, 3)) * 5:
        tensors = case(signature.name, random, batch, step)
        check(engine(*tensors), find_op(signature.name).reference(*tensors, *signature.attributes))


@pytest.mark.parametrize("key", list(SIGNATURES))
def test_network_forms_are_taken(key: str) -> None:
    assert rtx_plan(SIGNATURES[key], {"B": 1, "S": 2, "T": 1}, {"B": 8, "S": 32, "T": 31})


@pytest.mark.parametrize("name", ["commit_masks", "accept_draft"])
def test_blocks_of_the_seed_alone(interpreter: Interpreter, random: torch.Generator, name: str) -> None:
    signature = SIGNATURES[name]
    tensors = case(name, random, 3, 1)
    wanted = find_op(name).reference(*tensors, *signature.attributes)
    check(interpreter.launch(name, *tensors, *signature.attributes), wanted)
    check(OnnxOperator(signature)(*tensors), wanted)


@pytest.mark.parametrize("name", list(SIGNATURES))
def test_refusals(interpreter: Interpreter, random: torch.Generator, name: str) -> None:
    signature = SIGNATURES[name]
    first, *others = case(signature.name, random, 2, 4)
    with pytest.raises(ValueError, match="refuses"):
        interpreter.launch(signature.name, first.int(), *others, *signature.attributes)


@settings(max_examples=100, deadline=None)
@given(
    st.integers(0, 2**31), st.integers(1, 4), st.integers(2, 9), st.sampled_from([None, 0.0, 0.25, 0.5, 1.0]), st.integers(1, 9)
)
def test_commit_masks_is_the_rule_of_the_loops(seed: int, batch: int, step: int, threshold: float | None, quota: int) -> None:
    block, token, confidence, _ = case("commit_masks", torch.Generator().manual_seed(seed), batch, step)
    confidence = confidence.nan_to_num(0.75)
    is_open = np.random.default_rng(seed).random(batch) < 0.7
    filled = block.numpy().copy()
    outputs = [RowOutput(*row) for row in zip(token.numpy(), confidence.numpy(), strict=True)]
    commit = [
        fix_masks(filled[row], outputs[row], GreedyDecider(), MASK, threshold, quota, 0) if is_open[row] else []
        for row in range(batch)
    ]
    quotas = torch.from_numpy(np.where(is_open, quota, 0))
    ids, fixed, left, end = commit_masks_reference(block, token, confidence, quotas, MASK, EOS, threshold)
    np.testing.assert_array_equal(ids.numpy(), filled)
    assert fixed.tolist() == [len(offsets) for offsets in commit]
    for row in range(batch):
        tokens = filled[row].tolist()
        known = tokens[: tokens.index(MASK)] if MASK in tokens else tokens
        assert left[row] == tokens.count(MASK)
        assert end[row] == (known.index(EOS, 1) if EOS in known[1:] else step)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 4), st.integers(2, 9), st.booleans())
def test_accept_draft_is_the_rule_of_the_loops(seed: int, batch: int, step: int, ignore_eos: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    block, verified, length, remaining, _ = case("accept_draft", generator, batch, step)
    ends = torch.tensor([] if ignore_eos else [2], dtype=torch.int64)
    accepted, emitted, count, next_seed, next_length, left = accept_draft_reference(block, verified, length, remaining, ends)
    matched = [accept_draft(drafts, row) for drafts, row in zip(block[:, 1:].numpy(), verified.numpy(), strict=True)]
    for row in range(batch):
        if remaining[row] == 0:
            assert (int(count[row]), int(accepted[row]), int(left[row])) == (0, 0, 0)
            assert next_seed[row] == block[row, 0]
            assert next_length[row] == length[row]
            continue
        sequence = Sequence([1], int(remaining[row]), 1000, None if ignore_eos else 2)
        tokens = sequence.emit(verified[row, : matched[row] + 1].tolist())
        assert emitted[row].tolist() == tokens + [-1] * (step - len(tokens))
        assert count[row] == len(tokens)
        # As `SelfSpeculationRow` counts them.
        assert accepted[row] == len(tokens) - (len(tokens) > matched[row])
        assert next_seed[row] == tokens[-1]
        assert next_length[row] == length[row] + len(tokens)
        assert (left[row] == 0) == (sequence.finish_reason is not None)
        if sequence.finish_reason is not FinishReason.EOS:
            assert left[row] == remaining[row] - len(tokens)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 1000), min_size=1, max_size=5), st.integers(2, 9))
def test_next_block_is_what_a_row_starts_with(seeds: list[int], step: int) -> None:
    blocks = np.zeros((len(seeds), step), np.int64)
    for block, seed in zip(blocks, seeds, strict=True):
        sequence = Sequence([1], 10, 1000, None)
        sequence.emit([seed])
        SelfSpeculationRow(sequence, 1, step, MASK, GreedyDecider()).fill(block)
    np.testing.assert_array_equal(next_block_reference(torch.tensor(seeds), step, MASK).numpy(), blocks)

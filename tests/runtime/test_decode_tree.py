"""Leaves beside a draft: the tokens of ar whatever draft and leaves are, and one token more where a leaf is right."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nemodiff_trt.contract import Limits
from nemodiff_trt.errors import InvalidInputError
from nemodiff_trt.runtime.options import GenerationOptions
from nemodiff_trt.runtime.rows.quadratic_layout import tree_layout
from nemodiff_trt.runtime.rows.tree_speculation import likely_first_rejections, runner_up
from nemodiff_trt.vocabulary import Mode, Role
from support.decoding import Decoded, Request, decode_with, expected_ar
from support.scripted_session import MASK, ScriptedSession, counting, guess_from, random_text, unit

MAX_SEQ_LEN = 48
LIMITS = Limits(max_batch_size=4, max_seq_len=MAX_SEQ_LEN, block_length=16, prefill_chunk=7, quadratic_block_length=5)
PROMPT = (1, 50, 51)

requests = st.builds(
    Request,
    prompt=st.lists(st.integers(0, 399), min_size=1, max_size=MAX_SEQ_LEN - 1).map(tuple),
    max_new_tokens=st.integers(1, 60),
    ignore_eos=st.booleans(),
    budget=st.none() | st.integers(0, 20),
)
shapes = st.integers(2, 16).flatmap(lambda block: st.tuples(st.just(block), st.integers(1, min(block - 1, 30 - block))))


def options(block_length: int, num_leaves: int) -> GenerationOptions:
    return GenerationOptions(mode=Mode.SELF_SPECULATION, block_length=block_length, num_leaves=num_leaves)


@settings(deadline=None, max_examples=100)
@given(
    seed=st.integers(0, 10**6),
    batch=st.lists(requests, min_size=1, max_size=4),
    accuracy=st.sampled_from([0.0, 0.5, 0.9, 1.0]),
    second=st.sampled_from(["lowest", "random", "few"]),
    shape=shapes,
)
def test_equals_ar_for_any_drafts_and_leaves(
    seed: int, batch: list[Request], accuracy: float, second: str, shape: tuple[int, int]
) -> None:
    # A text of few tokens, so that a leaf drawn from them is right now and then.
    next_token = random_text(seed, vocab_size=40 if second == "random" else 17)
    session = ScriptedSession(next_token, guess_from(next_token, seed, accuracy), LIMITS)
    if second != "lowest":
        session.second_choice = lambda token, first, offset: 14 + int(unit(seed, token, first, offset) * 3)
    result = decode_with(session, options(*shape), batch)
    assert result.tokens == [expected_ar(next_token, request, MAX_SEQ_LEN) for request in batch]
    for row, sequence in enumerate(result.sequences):
        length = int(result.cache.length[row])
        tokens, positions = (array[row, 0, :length].tolist() for array in result.cache.keys)
        assert tokens == [*batch[row].prompt, *sequence.tokens[:-1]]
        assert positions == list(range(length))
        assert sequence.accepted_drafts + sequence.cycles >= len(sequence.tokens) - 1 >= sequence.accepted_drafts


def run_alone(num_leaves: int) -> Decoded:
    """A text that counts; every draft is wrong, and every second choice right."""
    session = ScriptedSession(counting(), guess_from(counting(), 0, 0.0), LIMITS)
    session.second_choice = lambda _, first, offset: first + offset
    return decode_with(
        session, options(6, num_leaves) if num_leaves else GenerationOptions(block_length=6), [Request(PROMPT, 21)]
    )


def test_a_right_leaf_gives_a_second_token() -> None:
    plain, tree = run_alone(0), run_alone(5)
    assert plain.tokens == tree.tokens == [list(range(203, 224))]
    assert plain.sequences[0].cycles == 20
    assert tree.sequences[0].cycles == 10
    assert tree.sequences[0].accepted_drafts == 10
    assert tree.sequences[0].step_tokens == 10 * (6 + 11)


def test_reports_name_the_leaf_that_was_accepted() -> None:
    verified = [step.rows[0] for step in run_alone(5).steps if step.role is Role.QUADRATIC]
    assert [(row.drafted[0], row.accepted, row.emitted) for row in verified[:2]] == [
        (204, 1, [204, 205]), (206, 1, [206, 207]),
    ]  # fmt: skip


def test_layout_written_out() -> None:
    layout = tree_layout(3, [1, 2])
    assert layout.position_offset.tolist() == [0, 1, 2, 1, 2]
    assert not layout.adapter_rows.any()
    assert layout.step_mask.astype(int).tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 0, 0, 1, 0],
        [1, 1, 0, 0, 1],
    ]


def test_leaves_go_where_the_draft_breaks_first() -> None:
    # Chances to be the first rejection: 0.1, 0.9 * 0.6 = 0.54, 0.36 * 0.5 = 0.18, 0.18 * 0.9 = 0.162.
    confidence = np.array([0.0, 0.9, 0.4, 0.5, 0.1], np.float32)
    assert likely_first_rejections(confidence, 1) == [2]
    assert likely_first_rejections(confidence, 2) == [2, 3]
    assert likely_first_rejections(confidence, 4) == [1, 2, 3, 4]


def test_runner_up_is_neither_the_best_nor_the_mask() -> None:
    logits = np.zeros(400, np.float32)
    logits[[MASK, 7, 9, 8]] = 9, 5, 3, 3
    assert runner_up(logits, 7, MASK) == 8
    assert logits[7] == 5


@pytest.mark.parametrize(
    ("changes", "roles"),
    [
        ({"num_leaves": 1}, {Role.PREFILL, Role.DRAFT, Role.VERIFY}),
        ({"num_leaves": 6, "block_length": 6}, set(Role)),
        ({"num_leaves": 15, "block_length": 16}, set(Role)),
    ],
)
def test_what_was_not_built_is_refused(changes: dict[str, int], roles: set[Role]) -> None:
    with pytest.raises(InvalidInputError, match="num_leaves"):
        GenerationOptions(**changes).check_for(LIMITS, frozenset(roles))


@pytest.mark.parametrize("changes", [{"num_leaves": -1}, {"num_leaves": 1, "threshold": 0.5}, {"num_leaves": 1, "mode": "ar"}])
def test_leaves_belong_to_a_draft_in_one_pass(changes: dict[str, object]) -> None:
    with pytest.raises(InvalidInputError, match="num_leaves"):
        GenerationOptions(**changes)

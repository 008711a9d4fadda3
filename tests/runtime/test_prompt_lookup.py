"""Prompt lookup: what is drafted, and that answers are those of ar whatever is found."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nemodiff_trt.contract import Limits
from nemodiff_trt.errors import InvalidInputError
from nemodiff_trt.runtime.options import GenerationOptions
from nemodiff_trt.runtime.rows.prompt_lookup import look_up
from nemodiff_trt.vocabulary import Mode, Role
from support.decoding import Request, decode_with, expected_ar
from support.scripted_session import Prefix, ScriptedSession, guess_from

MAX_SEQ_LEN = 64
LIMITS = Limits(max_batch_size=4, max_seq_len=MAX_SEQ_LEN, block_length=16, prefill_chunk=7)
FIRST_ID = 150


def scripted(period: int, seed: int) -> ScriptedSession:
    """Texts that repeat themselves, with an exception now and then, so that some drafts are right and some are not."""

    def next_token(prefix: Prefix) -> int:
        place = len(prefix)
        return FIRST_ID + (place * seed) % 7 if place % 11 == seed % 11 else FIRST_ID + place % period

    return ScriptedSession(next_token, guess_from(next_token, seed, 0.0), LIMITS)


def options(block_length: int = 8, ngram: int = 2) -> GenerationOptions:
    return GenerationOptions(mode=Mode.SELF_SPECULATION, block_length=block_length, lookup_ngram=ngram)


@pytest.mark.parametrize(
    ("history", "num", "ngram", "found"),
    [
        ([1, 2, 3, 4, 1, 2], 2, 2, [3, 4]),
        ([1, 2, 3, 4, 1, 2], 9, 2, [3, 4, 1, 2]),
        ([5, 6, 7], 3, 2, []),
        ([7], 3, 2, []),
        # Two tokens tell more than one, even if the one was seen more recently.
        ([1, 2, 8, 8, 9, 2, 7, 1, 2], 1, 2, [8]),
        ([1, 2, 8, 8, 9, 2, 7, 1, 2], 1, 1, [7]),
        # The latest of two, unless less followed there.
        ([1, 2, 1, 3, 1], 1, 1, [3]),
        ([4, 4, 4, 4], 2, 1, [4, 4]),
    ],
)
def test_look_up(history: list[int], num: int, ngram: int, found: list[int]) -> None:
    assert look_up(np.array(history), num, ngram).tolist() == found


requests = st.builds(
    Request,
    prompt=st.lists(st.integers(FIRST_ID, FIRST_ID + 5), min_size=1, max_size=MAX_SEQ_LEN - 1).map(tuple),
    max_new_tokens=st.integers(1, 60),
    ignore_eos=st.booleans(),
    budget=st.none() | st.integers(0, 20),
)


@settings(deadline=None, max_examples=100)
@given(
    batch=st.lists(requests, min_size=1, max_size=4),
    period=st.integers(1, 9),
    seed=st.integers(0, 99),
    block_length=st.integers(2, 16),
    ngram=st.integers(1, 4),
)
def test_answers_are_those_of_ar(batch: list[Request], period: int, seed: int, block_length: int, ngram: int) -> None:
    session = scripted(period, seed)
    result = decode_with(session, options(block_length, ngram), batch)
    assert result.tokens == [expected_ar(session.next_token, request, MAX_SEQ_LEN) for request in batch]
    for row, sequence in enumerate(result.sequences):
        cached = result.cache.keys[0][row, 0, : result.cache.length[row]].tolist()
        assert cached == [*batch[row].prompt, *sequence.tokens[:-1]]


def test_copying_takes_few_runs_and_no_drafter() -> None:
    request = Request(tuple(FIRST_ID + place % 4 for place in range(12)), max_new_tokens=30, ignore_eos=True)

    def next_token(prefix: Prefix) -> int:
        return FIRST_ID + len(prefix) % 4

    result = decode_with(ScriptedSession(next_token, guess_from(next_token, 0, 0.0), LIMITS), options(), [request])
    assert {step.role for step in result.steps} == {Role.PREFILL, Role.VERIFY}
    # 29 tokens after the first, eight a run.
    assert result.sequences[0].forward_passes == 4


@pytest.mark.parametrize("changes", [{"mode": "ar"}, {"mode": "diffusion"}, {"threshold": 0.5}, {"num_leaves": 1}])
def test_only_beside_plain_self_speculation(changes: dict[str, object]) -> None:
    with pytest.raises(InvalidInputError, match="lookup_ngram"):
        options().changed(**{"block_length": None, **changes})

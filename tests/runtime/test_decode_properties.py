"""What must hold for any text, prompt, draft, block length, batch and budget: scripted sessions against plain recomputation."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nemodiff_trt.contract import Limits
from nemodiff_trt.runtime.decisions import CommitRule, accept_draft, most_confident
from nemodiff_trt.vocabulary import Mode
from support.decoding import Request, decode, expected_ar, expected_diffusion
from support.scripted_session import MASK, ScriptedSession, guess_from, random_text

MAX_SEQ_LEN = 48
LIMITS = Limits(max_batch_size=4, max_seq_len=MAX_SEQ_LEN, block_length=32, prefill_chunk=7)
QUICK = settings(deadline=None, max_examples=100)

prompts = st.lists(st.integers(0, 399), min_size=1, max_size=MAX_SEQ_LEN - 1).map(tuple)
requests = st.builds(
    Request,
    prompt=prompts,
    max_new_tokens=st.integers(1, 60),
    ignore_eos=st.booleans(),
    budget=st.none() | st.integers(0, 20),
)
batches = st.lists(requests, min_size=1, max_size=4)
accuracies = st.sampled_from([0.0, 0.5, 0.9, 1.0])
thresholds = st.sampled_from([0.0, 0.3, 0.9, 1.0])
rules = st.builds(CommitRule, thresholds) | st.builds(CommitRule, st.none(), st.integers(1, 40))
seeds = st.integers(0, 10**6)


def scripted(seed: int, accuracy: float) -> ScriptedSession:
    next_token = random_text(seed)
    return ScriptedSession(next_token, guess_from(next_token, seed, accuracy), LIMITS)


@QUICK
@given(seed=seeds, batch=batches)
def test_ar_equals_recomputation(seed: int, batch: list[Request]) -> None:
    session = scripted(seed, 1.0)
    result = decode(session, Mode.AR, batch)
    assert result.tokens == [expected_ar(session.next_token, request, MAX_SEQ_LEN) for request in batch]


@QUICK
@given(seed=seeds, batch=batches, accuracy=accuracies, block_length=st.integers(2, 32), threshold=thresholds)
def test_self_speculation_equals_ar_for_any_drafts(
    seed: int, batch: list[Request], accuracy: float, block_length: int, threshold: float
) -> None:
    session = scripted(seed, accuracy)
    result = decode(session, Mode.SELF_SPECULATION, batch, block_length, CommitRule(threshold))
    assert result.tokens == [expected_ar(session.next_token, request, MAX_SEQ_LEN) for request in batch]
    for row, sequence in enumerate(result.sequences):
        cached = result.cache.keys[0][row, 0, : result.cache.length[row]].tolist()
        assert cached == [*batch[row].prompt, *sequence.tokens[:-1]]


@QUICK
@given(seed=seeds, batch=batches, accuracy=accuracies, block_length=st.integers(2, 32), rule=rules)
def test_diffusion_equals_recomputation_row_by_row(
    seed: int, batch: list[Request], accuracy: float, block_length: int, rule: CommitRule
) -> None:
    session = scripted(seed, accuracy)
    result = decode(session, Mode.DIFFUSION, batch, block_length, rule)
    assert result.tokens == [
        expected_diffusion(session.next_token, session.guess, request, MAX_SEQ_LEN, block_length, rule) for request in batch
    ]
    for row, sequence in enumerate(result.sequences):
        answer = [*batch[row].prompt, *sequence.tokens]
        length = int(result.cache.length[row])
        assert MASK not in sequence.tokens
        assert len(batch[row].prompt) <= length < len(answer)
        assert result.cache.keys[0][row, 0, :length].tolist() == answer[:length]


@QUICK
@given(seed=seeds, batch=batches, accuracy=accuracies, block_length=st.integers(2, 16), rule=rules)
def test_single_row_accounting(seed: int, batch: list[Request], accuracy: float, block_length: int, rule: CommitRule) -> None:
    for mode in (Mode.AR, Mode.DIFFUSION, Mode.SELF_SPECULATION):
        session = scripted(seed, accuracy)
        sequence = decode(session, mode, batch[:1], block_length, rule).sequences[0]
        assert sequence.forward_passes == len(session.runs) - sequence.prefill_passes
        if mode is Mode.AR:
            assert sequence.forward_passes == len(sequence.tokens) - 1
        if mode is Mode.SELF_SPECULATION:
            assert sequence.draft_passes + sequence.cycles == sequence.forward_passes
            assert sequence.accepted_drafts + sequence.cycles >= len(sequence.tokens) - 1 >= sequence.accepted_drafts


@QUICK
@given(
    # Long enough for a sort that is not stable to show.
    step=st.integers(0, 40),
    seed=seeds,
    threshold=st.none() | st.sampled_from([0.0, 0.5, 0.6, 1.0]),
    quota=st.integers(1, 12),
)
def test_most_confident_equals_a_loop(step: int, seed: int, threshold: float | None, quota: int) -> None:
    # Few values, so that ties and thresholds met exactly are common.
    confidence = np.random.default_rng(seed).choice(np.array([0.25, 0.5, 0.75, 1.0], np.float32), step)
    ranked = sorted(range(step), key=lambda index: (-confidence[index], index))
    sure = [index for index in range(step) if threshold is not None and confidence[index] >= threshold]
    assert most_confident(confidence, threshold, quota).tolist() == sorted({*ranked[:quota], *sure})


@QUICK
@given(step=st.integers(2, 9), seed=seeds)
def test_accept_draft_equals_a_loop(step: int, seed: int) -> None:
    drafts, verified = np.random.default_rng(seed).integers(0, 2, (2, step))
    matches = [bool(draft == token) for draft, token in zip(drafts[1:], verified, strict=False)]
    assert accept_draft(drafts[1:], verified) == (matches.index(False) if False in matches else step - 1)


@pytest.mark.parametrize(("steps", "num_masks"), [(1, 7), (3, 7), (7, 7), (9, 7), (4, 31)])
def test_schedule_covers_all_masks(steps: int, num_masks: int) -> None:
    quotas = [CommitRule(None, steps).quota(step, num_masks) for step in range(min(steps, num_masks))]
    assert sum(quotas) == num_masks
    assert quotas == sorted(quotas, reverse=True)
    assert quotas[0] - quotas[-1] <= 1

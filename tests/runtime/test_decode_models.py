"""Decoding with the eager decoder in float64: losslessness, independence of rows, and what the cache holds afterwards."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nemodiff_trt.contract import Limits
from nemodiff_trt.model import TriModeDecoder
from nemodiff_trt.runtime.decisions import CommitRule
from nemodiff_trt.runtime.kv_cache import KVCache
from nemodiff_trt.runtime.options import GenerationOptions
from nemodiff_trt.runtime.session import StepOutput
from nemodiff_trt.runtime.session_eager import EagerSession
from nemodiff_trt.runtime.step_layout import StepLayout
from nemodiff_trt.vocabulary import Mode, Role
from support.checkpoints import random_decoder, tiny_config
from support.decoding import Decoded, Request, decode, decode_with
from support.scripted_session import MASK, unit

LIMITS = Limits(max_batch_size=3, max_seq_len=40, block_length=32, prefill_chunk=8, quadratic_block_length=5)
# Models differ by seed; a small vocabulary makes drafts right by chance and EOS and </think> common.
CONFIG = tiny_config(hidden_size=16, intermediate_size=16, head_dim=8, vocab_size=101)
MODES = (Mode.AR, Mode.DIFFUSION, Mode.SELF_SPECULATION)

requests = st.builds(
    Request,
    prompt=st.lists(st.integers(0, 100), min_size=1, max_size=39).map(tuple),
    max_new_tokens=st.integers(1, 24),
    ignore_eos=st.booleans(),
    budget=st.none() | st.integers(0, 12),
)
batches = st.lists(requests, min_size=1, max_size=3)
# (block length, rule): passes that fix few positions each are many in a long block.
shapes = st.tuples(st.integers(2, 32), st.just(CommitRule(0.0))) | st.tuples(
    st.integers(2, 8), st.sampled_from([CommitRule(0.05), CommitRule(0.9), CommitRule(None, 5)])
)
model_seeds = st.integers(0, 9)
BOUNDED = settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.too_slow])


@cache
def decoder_of(seed: int) -> TriModeDecoder:
    return random_decoder(CONFIG, LIMITS.cache_capacity, seed).double()


def eager(seed: int) -> EagerSession:
    return EagerSession(decoder_of(seed), LIMITS)


class TamperedDrafts:
    """A session whose drafts are replaced: by the answers that are known to come, or by other tokens."""

    def __init__(self, session: EagerSession, texts: list[list[int]], is_right: Callable[[int], bool]) -> None:
        """`texts` are the prompts with their answers, `is_right` judges a place in them."""
        self._session = session
        self._texts = texts
        self._is_right = is_right

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def create_cache(self, batch_size: int, spare_rows: int = 0) -> KVCache[Any]:
        self._whole = self._session.create_cache(batch_size, spare_rows)
        return self._whole

    def run(
        self,
        role: Role,
        input_ids: np.ndarray,
        cache: KVCache[Any],
        last_index: np.ndarray | None = None,
        layout: StepLayout | None = None,
    ) -> StepOutput:
        output = self._session.run(role, input_ids, cache, last_index, layout)
        if role is Role.DRAFT:
            # The run may be one of a range of the rows.
            begin = (cache.length.ctypes.data - self._whole.length.ctypes.data) // cache.length.itemsize
            for row, text in enumerate(self._texts[begin : begin + cache.batch_size]):
                for offset in range(1, input_ids.shape[1]):
                    place = int(cache.length[row]) + offset
                    token = text[place] if place < len(text) else 0
                    # Never the right one by accident, and never the mask.
                    output.token[row, offset] = token if self._is_right(place) else (token + 1) % MASK
        return output


def check_cache(session: EagerSession, batch: list[Request], result: Decoded, is_committed: bool) -> None:
    """The valid slots of every row equal one causal run over the same tokens."""
    for row, request in enumerate(batch):
        text, length = [*request.prompt, *result.tokens[row]], int(result.cache.length[row])
        assert length < len(text)
        assert not is_committed or length == len(text) - 1
        fresh = session.create_cache(1)
        session.run(Role.VERIFY, np.array([text[:length]]), fresh)
        for used, clean in zip(result.cache.keys + result.cache.values, fresh.keys + fresh.values, strict=True):
            torch.testing.assert_close(used[row, :, :length], clean[0, :, :length], rtol=1e-9, atol=1e-11)


@BOUNDED
@given(seed=model_seeds, batch=batches, shape=shapes)
def test_self_speculation_equals_ar(seed: int, batch: list[Request], shape: tuple[int, CommitRule]) -> None:
    session, (block_length, rule) = eager(seed), shape
    plain = decode(session, Mode.AR, batch)
    speculative = decode(session, Mode.SELF_SPECULATION, batch, block_length, rule)
    assert speculative.tokens == plain.tokens
    assert [s.finish_reason for s in speculative.sequences] == [s.finish_reason for s in plain.sequences]
    check_cache(session, batch, plain, is_committed=True)
    check_cache(session, batch, speculative, is_committed=True)


@BOUNDED
@given(
    seed=model_seeds,
    batch=batches,
    shape=st.tuples(st.integers(2, 5), st.none() | st.integers(1, 2)) | st.tuples(st.integers(6, 10), st.integers(1, 2)),
)
def test_quadratic_equals_ar(seed: int, batch: list[Request], shape: tuple[int, int | None]) -> None:
    session, (block_length, draft_groups) = eager(seed), shape
    plain = decode(session, Mode.AR, batch)
    options = GenerationOptions(mode=Mode.QUADRATIC, block_length=block_length, draft_groups=draft_groups)
    quadratic = decode_with(session, options, batch)
    assert quadratic.tokens == plain.tokens
    assert [s.finish_reason for s in quadratic.sequences] == [s.finish_reason for s in plain.sequences]
    check_cache(session, batch, quadratic, is_committed=True)


@BOUNDED
@given(
    seed=model_seeds,
    batch=batches,
    block_length=st.integers(2, 32),
    accuracy=st.sampled_from([0.0, 0.6, 0.9, 1.0]),
    salt=st.integers(),
)
def test_self_speculation_equals_ar_with_tampered_drafts(
    seed: int, batch: list[Request], block_length: int, accuracy: float, salt: int
) -> None:
    session = eager(seed)
    plain = decode(session, Mode.AR, batch)
    texts = [[*request.prompt, *answer] for request, answer in zip(batch, plain.tokens, strict=True)]
    tampered = TamperedDrafts(session, texts, lambda place: unit(salt, place) < accuracy)
    speculative = decode(tampered, Mode.SELF_SPECULATION, batch, block_length)
    assert speculative.tokens == plain.tokens
    check_cache(session, batch, speculative, is_committed=True)
    for request, sequence in zip(batch, speculative.sequences, strict=True):
        later = len(sequence.tokens) - 1
        if accuracy == 0.0:
            assert sequence.cycles == later
        if accuracy == 1.0 and request.budget is None:
            assert sequence.cycles == -(-later // block_length)


@BOUNDED
@given(seed=model_seeds, batch=batches, shape=shapes)
def test_diffusion_never_gives_masks_and_commits_what_it_gives(
    seed: int, batch: list[Request], shape: tuple[int, CommitRule]
) -> None:
    session, (block_length, rule) = eager(seed), shape
    result = decode(session, Mode.DIFFUSION, batch, block_length, rule)
    assert all(MASK not in tokens for tokens in result.tokens)
    check_cache(session, batch, result, is_committed=False)


@BOUNDED
@given(seed=model_seeds, batch=batches, shape=shapes)
def test_batched_equals_single(seed: int, batch: list[Request], shape: tuple[int, CommitRule]) -> None:
    session, (block_length, rule) = eager(seed), shape
    for mode in MODES:
        alone = [decode(session, mode, [request], block_length, rule).tokens[0] for request in batch]
        assert decode(session, mode, batch, block_length, rule).tokens == alone


@pytest.mark.parametrize("mode", MODES)
def test_mask_id_with_the_largest_logit_is_never_chosen(mode: Mode) -> None:
    decoder = random_decoder(CONFIG, LIMITS.cache_capacity, seed=3).double()
    # One feature is large for every token, and only the mask's row of the head reads it.
    with torch.no_grad():
        decoder.encoder.embed_tokens.weight[:, 0] = 50.0
        decoder.diffusion_head.weight[:MASK, 0] = 0.0
        decoder.diffusion_head.weight[MASK, 0] = 100.0
    session = EagerSession(decoder, LIMITS)
    cache = session.create_cache(1)
    logits, _, _ = decoder(torch.tensor([[1, 5]]), torch.tensor([0]), cache.keys, cache.values)
    assert logits.argmax(-1).tolist() == [[MASK, MASK]]
    batch = [Request((1, 5, 9), 24, ignore_eos=True), Request((1, MASK, 9), 24, ignore_eos=True)]
    result = decode(session, mode, batch, 8, CommitRule(0.9))
    assert [len(tokens) for tokens in result.tokens] == [24, 24]
    assert all(MASK not in tokens for tokens in result.tokens)


@pytest.mark.parametrize("mode", [Mode.SELF_SPECULATION, Mode.QUADRATIC])
def test_adapter_changes_drafts_and_not_answers(mode: Mode) -> None:
    with_adapter = decoder_of(1)
    without = random_decoder(CONFIG, LIMITS.cache_capacity, 1, adapter_rank=0).double()
    # The weights are drawn in the order of names, which the adapter changes.
    without.load_state_dict({name: value for name, value in with_adapter.state_dict().items() if "lora" not in name})
    batch = [Request((1, 5, 9), 24, ignore_eos=True)]
    drafts, answers = [], []
    for decoder in (with_adapter, without):
        result = decode(EagerSession(decoder, LIMITS), mode, batch, 5)
        drafts.append([list(step.rows[0].drafted) for step in result.steps if step.role in (Role.DRAFT, Role.QUADRATIC)])
        answers.append(result.tokens)
    assert answers[0] == answers[1]
    assert drafts[0] != drafts[1]


def test_reaching_the_context_limit_in_every_mode() -> None:
    session = eager(2)
    for length in (15, 38, 39):
        batch = [dataclasses.replace(Request(tuple(range(20, 20 + length)), 1000), ignore_eos=True)]
        for mode in MODES:
            result = decode(session, mode, batch, 32, CommitRule(0.0))
            assert len(result.tokens[0]) == 40 - length

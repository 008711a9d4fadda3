from __future__ import annotations

import numpy as np
import pytest
import torch

from nemodiff_trt.contract import Limits
from nemodiff_trt.errors import InvalidInputError
from nemodiff_trt.runtime.kv_cache import KVCache
from nemodiff_trt.runtime.session import Session
from nemodiff_trt.runtime.session_eager import EagerSession
from nemodiff_trt.vocabulary import Role
from support.checkpoints import random_decoder, tiny_config

LIMITS = Limits(max_batch_size=3, max_seq_len=24, block_length=4, prefill_chunk=8)
IDS = np.array([[1, 40, 41, 42], [1, 50, 51, 52]])


@pytest.fixture(scope="module")
def session() -> EagerSession:
    return EagerSession(random_decoder(tiny_config(), LIMITS.cache_capacity).double(), LIMITS)


def filled_cache(session: Session) -> KVCache[torch.Tensor]:
    cache = session.create_cache(2)
    session.run(Role.VERIFY, IDS, cache)
    cache.length[:] = [4, 2]
    return cache


def test_cache_has_the_engine_shape_and_dtype(session: EagerSession) -> None:
    cache = session.create_cache(2)
    assert (cache.batch_size, cache.capacity, cache.length.tolist()) == (2, 28, [0, 0])
    assert [tensor.shape for tensor in cache.keys + cache.values] == [(2, 2, 28, 16)] * 4
    assert cache.keys[0].dtype == torch.float64


@pytest.mark.parametrize("role", [Role.DECODE, Role.VERIFY, Role.DENOISE, Role.DRAFT])
def test_roles_differ_in_direction_and_adapter_only(session: EagerSession, role: Role) -> None:
    cache = filled_cache(session)
    block = np.array([[7, 100, 100], [8, 100, 100]])
    keys, values, length = cache.keys, cache.values, cache.length.copy()
    output = session.run(role, block, cache)
    logits, _, _ = session._decoder(
        torch.from_numpy(block), torch.from_numpy(length), keys, values, causal=role.is_causal, use_adapter=role is Role.DRAFT
    )
    logits[..., 100] = -torch.inf
    np.testing.assert_array_equal(output.token, logits.argmax(-1).numpy())
    assert (output.token.dtype, output.confidence.dtype) == (np.int64, np.float32)
    np.testing.assert_array_equal(cache.length, length)


def test_roles_give_different_answers(session: EagerSession) -> None:
    block = np.array([[7, 100, 100], [8, 100, 100]])
    answers = {
        role: session.run(role, block, filled_cache(session)).confidence for role in (Role.VERIFY, Role.DENOISE, Role.DRAFT)
    }
    assert len({array.tobytes() for array in answers.values()}) == 3


def test_prefill_answers_the_row_of_last_index(session: EagerSession) -> None:
    whole = session.run(Role.VERIFY, IDS, session.create_cache(2))
    output = session.run(Role.PREFILL, IDS, session.create_cache(2), np.array([3, 1]))
    assert output.token.tolist() == [[whole.token[0, 3]], [whole.token[1, 1]]]
    np.testing.assert_array_equal(output.confidence, [[whole.confidence[0, 3]], [whole.confidence[1, 1]]])


def test_cropped_slots_are_not_read(session: EagerSession) -> None:
    cache = filled_cache(session)
    # Row 1 keeps two tokens: other content behind them must not matter.
    before = session.run(Role.VERIFY, IDS, cache)
    cache = filled_cache(session)
    for tensor in cache.keys + cache.values:
        tensor[1, :, 2:] = 1e3
    after = session.run(Role.VERIFY, IDS, cache)
    np.testing.assert_array_equal(before.token, after.token)
    np.testing.assert_array_equal(before.confidence, after.confidence)


def test_cleared_cache_is_as_good_as_new(session: EagerSession) -> None:
    cache = filled_cache(session)
    cache.clear()
    fresh = session.create_cache(2)
    np.testing.assert_array_equal(
        session.run(Role.VERIFY, IDS[:, ::-1].copy(), cache).confidence,
        session.run(Role.VERIFY, IDS[:, ::-1].copy(), fresh).confidence,
    )


def test_decoder_without_adapter_drafts_like_it_denoises() -> None:
    session = EagerSession(random_decoder(tiny_config(), LIMITS.cache_capacity, adapter_rank=0), LIMITS)
    draft, denoise = (session.run(role, IDS, filled_cache(session)) for role in (Role.DRAFT, Role.DENOISE))
    np.testing.assert_array_equal(draft.confidence, denoise.confidence)


def test_refusals(session: EagerSession) -> None:
    decoder = random_decoder(tiny_config(), LIMITS.cache_capacity)
    with pytest.raises(InvalidInputError, match="cache_capacity"):
        EagerSession(decoder, Limits(max_batch_size=1, max_seq_len=25, block_length=4, prefill_chunk=8))
    with pytest.raises(InvalidInputError, match="layout: got None"):
        session.run(Role.QUADRATIC, IDS, session.create_cache(2))
    for size in (0, 4):
        with pytest.raises(InvalidInputError, match=f"batch_size: got {size}, allowed: 1 to 3"):
            session.create_cache(size)
    with pytest.raises(InvalidInputError, match="last_index"):
        session.run(Role.PREFILL, IDS, session.create_cache(2))
    limited = EagerSession(decoder, LIMITS, frozenset({Role.PREFILL, Role.DECODE}))
    with pytest.raises(InvalidInputError, match="role: got <Role"):
        limited.run(Role.VERIFY, IDS, limited.create_cache(2))

"""A model whose operators run as Triton kernels answers in every mode as the same model of plain torch."""

from __future__ import annotations

import pytest

from nemodiff_trt.contract import Limits
from nemodiff_trt.runtime.session_eager import EagerSession
from nemodiff_trt.vocabulary import BUILT_MODES, Mode
from support.checkpoints import random_decoder, tiny_config
from support.decoding import Request, decode
from support.interpreter import Interpreter

LIMITS = Limits(max_batch_size=2, max_seq_len=30, block_length=4, prefill_chunk=8, quadratic_block_length=3)
# The kernels take heads of 16 and more. A small vocabulary makes drafts right by chance.
CONFIG = tiny_config(
    hidden_size=16, intermediate_size=16, head_dim=16, vocab_size=101,
    num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1,
)  # fmt: skip
REQUESTS = [Request((1, 2, 3), 4, ignore_eos=True)]


def answers(mode: Mode) -> list[list[int]]:
    session = EagerSession(random_decoder(CONFIG, LIMITS.cache_capacity, seed=5), LIMITS)
    return decode(session, mode, REQUESTS, block_length=3 if mode is Mode.QUADRATIC else 4).tokens


def answers_on_kernels(mode: Mode) -> list[list[int]]:
    """In a process whose Triton interprets."""
    from nemodiff_trt.plugins.kernels import register_kernels

    assert {"attention", "masked_attention", "decision_head"} <= set(register_kernels("cpu"))
    return answers(mode)


@pytest.mark.parametrize("mode", BUILT_MODES)
def test_every_mode_gives_the_same_tokens(interpreter: Interpreter, mode: Mode) -> None:
    assert interpreter.call(answers_on_kernels, mode) == answers(mode)

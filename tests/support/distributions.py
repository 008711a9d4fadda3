"""A session whose distributions are known exactly: what may be sampled after a prefix is one of a few tables."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np

from nemodiff_trt.contract import Limits
from nemodiff_trt.runtime.sampling import SamplingOptions, SamplingWorkspace, TokenChooser
from support.scripted_session import MASK, Prefix, ScriptedSession, unit

TOKENS = (20, 21, 22, 23)
_NUM_TABLES = 200
_FIRST_TABLE = 150
LIMITS = Limits(max_batch_size=8, max_seq_len=32, block_length=6, prefill_chunk=8, quadratic_block_length=4)


class DistributionSession(ScriptedSession):
    """The script's "tokens" are numbers of tables of logits; tokens come from sampling.

    Drafts have tables of their own, so drafting and verifying distributions differ, and overlap because tables are few tokens
    wide.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._tables = np.full((_NUM_TABLES, self.model.vocab_size), -30.0, np.float32)
        self._tables[:, TOKENS] = np.random.default_rng(seed).normal(scale=1.5, size=(_NUM_TABLES, len(TOKENS)))
        super().__init__(self._table_after, self._guesses, LIMITS)

    def logits_after(self, prefix: Prefix) -> np.ndarray:
        """Logits float32 [V] of the token behind `prefix`."""
        logits: np.ndarray = self._tables[self._table_after(prefix) - _FIRST_TABLE]
        return logits

    def logits_of(self, token: np.ndarray, input_ids: np.ndarray) -> np.ndarray:  # noqa: ARG002 - the signature of the base
        # Rows that are only computed along answer with the mask.
        logits: np.ndarray = self._tables[np.where(token == MASK, 0, token - _FIRST_TABLE)]
        return logits

    def _table_after(self, prefix: Prefix) -> int:
        return _FIRST_TABLE + int(unit(self._seed, prefix) * _NUM_TABLES)

    def _guesses(self, prefix: Prefix, block: Prefix) -> list[tuple[int, float]]:
        known = prefix + block[:1]
        return [
            (_FIRST_TABLE + int(unit(self._seed, 7, known, offset) * _NUM_TABLES), unit(self._seed, 8, known, offset))
            for offset in range(len(block))
        ]


def exact_answers(session: DistributionSession, prompt: Prefix, options: SamplingOptions, length: int) -> dict[Prefix, float]:
    """Probability of every answer of `length` tokens, as `ar` samples it."""
    workspace = SamplingWorkspace(session.model.vocab_size, session.model.mask_token_id)
    found = {}
    for answer in itertools.product(TOKENS, repeat=length):
        probability = 1.0
        for index, token in enumerate(answer):
            chooser = TokenChooser(options, workspace, prompt, list(answer[:index]))
            probability *= float(chooser.probabilities(session.logits_after(prompt + answer[:index]))[token])
        found[answer] = probability
    return found


def seeds(count: int) -> Iterator[int]:
    yield from range(1_000_000, 1_000_000 + count)

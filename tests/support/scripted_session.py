"""A session whose tokens are a pure function of the tokens before them, so that every decoding rule has an exact answer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from nemodiff_trt.config import ModelConfig
from nemodiff_trt.contract import Limits
from nemodiff_trt.runtime.kv_cache import KVCache
from nemodiff_trt.runtime.session import StepOutput
from nemodiff_trt.runtime.session_eager import ALL_ROLES
from nemodiff_trt.runtime.step_layout import StepLayout
from nemodiff_trt.vocabulary import Role
from support.checkpoints import tiny_config

Prefix = tuple[int, ...]
# Successor of a prefix.
NextToken = Callable[[Prefix], int]
# Tokens and confidences of a whole block after a prefix.
Guess = Callable[[Prefix, Prefix], list[tuple[int, float]]]

EOS, END_THINK, MASK = 11, 13, 100
_NEVER_WRITTEN = -1_000_000


# What a random number is drawn for.
_KIND, _TOKEN, _IS_RIGHT, _WRONG, _CONFIDENCE = range(5)


def unit(*parts: int | Prefix) -> float:
    """A number from 0 to 1 that depends on nothing but `parts`: hashes of integers are the same in every process."""
    return (hash(parts) * 0x9E3779B97F4A7C15 % 2**64) / 2**64


def random_text(seed: int, vocab_size: int = 40, specials: float = 0.05) -> NextToken:
    """Successors drawn from ids below `vocab_size`, with EOS and </think> among them at the given rate each."""

    def next_token(prefix: Prefix) -> int:
        value = unit(seed, _KIND, prefix)
        if value < specials:
            return EOS
        if value < 2 * specials:
            return END_THINK
        return 14 + int(unit(seed, _TOKEN, prefix) * (vocab_size - 14))

    return next_token


def counting(first: int = 200) -> NextToken:
    """The successor of a prefix of n tokens is `first` + n."""
    return lambda prefix: first + len(prefix)


def guess_from(next_token: NextToken, seed: int, accuracy: float) -> Guess:
    """Guesses that follow `next_token` with probability `accuracy` each, and are some other token otherwise.

    A position is judged by the known tokens left of it only, as far as they reach, so guesses get better as masks are filled.
    """

    def guess(prefix: Prefix, block: Prefix) -> list[tuple[int, float]]:
        known, answers = prefix + block[:1], [(0, 0.0)]
        for offset in range(1, len(block)):
            right = next_token(known)
            is_right = unit(seed, _IS_RIGHT, known, offset) < accuracy
            token = right if is_right else 14 + int(unit(seed, _WRONG, known, block, offset) * 26)
            answers.append((token, unit(seed, _CONFIDENCE, known, block, offset)))
            known += (block[offset] if block[offset] != MASK else token,)
        return answers

    return guess


@dataclass
class _Slots:
    """One row of the cache."""

    tokens: np.ndarray
    positions: np.ndarray
    length: int

    @classmethod
    def of(cls, cache: KVCache[Any], row: int) -> _Slots:
        tokens, positions = cache.keys
        return cls(tokens[row, 0], positions[row, 0], int(cache.length[row]))

    def prefix(self) -> Prefix:
        tokens = tuple(self.tokens[: self.length].tolist())
        assert all(token >= 0 for token in tokens), "a run reads what no causal run wrote"
        assert self.positions[: self.length].tolist() == list(range(self.length)), "a token lies at another position's slot"
        return tokens

    def write(self, tokens: np.ndarray, offsets: np.ndarray) -> None:
        end = self.length + len(tokens)
        assert end <= len(self.tokens), "a run writes beyond the cache"
        self.tokens[self.length : end] = tokens
        self.positions[self.length : end] = self.length + offsets


class ScriptedSession:
    """Keeps tokens instead of keys and values, and refuses to read what a causal run did not write, or to write too far."""

    def __init__(self, next_token: NextToken, guess: Guess | None = None, limits: Limits | None = None) -> None:
        self.next_token = next_token
        self.guess = guess or guess_from(next_token, 0, 1.0)
        # Runner-up of a guess: from the guess, the seed of the block and the offset in it. Without, the lowest other id.
        self.second_choice: Callable[[int, int, int], int] | None = None
        self.keeps_logits = True
        self._limits = limits or Limits(max_batch_size=8, max_seq_len=64, block_length=32, prefill_chunk=16)
        # (role, S) of every run.
        self.runs: list[tuple[Role, int]] = []

    @property
    def model(self) -> ModelConfig:
        return tiny_config()

    @property
    def limits(self) -> Limits:
        return self._limits

    @property
    def roles(self) -> frozenset[Role]:
        return ALL_ROLES

    @property
    def has_logits(self) -> bool:
        return self.keeps_logits

    def create_cache(self, batch_size: int, spare_rows: int = 0) -> KVCache[Any]:
        shape = (batch_size + spare_rows, 1, self._limits.cache_capacity)
        # Tokens in the place of keys, and the positions they were computed for.
        return KVCache([np.full(shape, _NEVER_WRITTEN), np.full(shape, -1)], [], np.zeros(shape[0], np.int64), shape[-1])

    def run(
        self,
        role: Role,
        input_ids: np.ndarray,
        cache: KVCache[Any],
        last_index: np.ndarray | None = None,
        layout: StepLayout | None = None,
    ) -> StepOutput:
        batch, step = input_ids.shape
        assert batch == cache.batch_size
        assert input_ids.dtype == np.int64
        assert (role is Role.PREFILL) == (last_index is not None)
        assert 1 <= step <= self._limits.longest_step(role)
        assert (role is Role.QUADRATIC) == (layout is not None)
        self.runs.append((role, step))
        if layout is not None:
            StepLayout.zeros(batch, step).copy_from(layout)
        rows = [
            self._run_row(role, input_ids[row], _Slots.of(cache, row), None if layout is None else layout.row(row))
            for row in range(batch)
        ]
        token = np.array([[token for token, _ in row] for row in rows])
        confidence = np.array([[value for _, value in row] for row in rows], np.float32)
        logits = self.logits_of(token, input_ids) if self.keeps_logits else None
        if last_index is None:
            return StepOutput(token, confidence, logits)
        picked = np.arange(batch), last_index
        return StepOutput(
            token[picked][:, None], confidence[picked][:, None], None if logits is None else logits[picked][:, None]
        )

    def logits_of(self, token: np.ndarray, input_ids: np.ndarray) -> np.ndarray:
        """Scores [B,S,V] that put `token` first and what `second_choice` says second."""
        scores = np.zeros((*token.shape, self.model.vocab_size), np.float32)
        if self.second_choice is not None:
            for place in np.ndindex(token.shape):
                scores[(*place, self.second_choice(int(token[place]), int(input_ids[place[0], 0]), place[1]))] = 1
        np.put_along_axis(scores, token[..., None], 2, axis=-1)
        return scores

    def _run_row(self, role: Role, ids: np.ndarray, slots: _Slots, layout: StepLayout | None = None) -> list[tuple[int, float]]:
        prefix, block = slots.prefix(), tuple(ids.tolist())
        if layout is not None:
            slots.write(np.where(layout.adapter_rows == 0, ids, -1 - ids), layout.position_offset)
            return [self._run_token(prefix, ids, layout, index) for index in range(len(ids))]
        # Below zero: nothing may read what a bidirectional run wrote.
        slots.write(ids if role.is_causal else -1 - ids, np.arange(len(ids)))
        if role.is_causal:
            return [(self.next_token(prefix + block[: offset + 1]), 1.0) for offset in range(len(block))]
        return self.guess(prefix, block)

    def _run_token(self, prefix: Prefix, ids: np.ndarray, layout: StepLayout, index: int) -> tuple[int, float]:
        """Answer of one token of a quadratic step: the causal one without the adapter, a guess of a mask with it.

        What the token sees has to make sense: tokens of all positions up to its own, or known ones and then masks. Otherwise
        the answer is wrong on purpose, and no assertion: rows that are computed along have a layout of other tokens.
        """
        seen = np.flatnonzero(layout.step_mask[index])
        seen = seen[np.argsort(layout.position_offset[seen], kind="stable")]
        own, tokens = int(layout.position_offset[index]), tuple(ids[seen].tolist())
        is_guess = (layout.adapter_rows[seen] == 1).tolist()
        num_known = is_guess.count(False)
        is_sorted = is_guess == [False] * num_known + [True] * (len(seen) - num_known)
        if index not in seen or layout.position_offset[seen].tolist() != list(range(len(seen))) or not is_sorted:
            return MASK, 0.0
        if layout.adapter_rows[index] == 0:
            return (self.next_token(prefix + tokens), 1.0) if own == len(seen) - 1 == num_known - 1 else (MASK, 0.0)
        if num_known < 1 or set(tokens[num_known:]) != {MASK}:
            return MASK, 0.0
        # The last known token is the seed of the block.
        return self.guess(prefix + tokens[: num_known - 1], tokens[num_known - 1 :])[own - num_known + 1]

"""Which finished requests are kept in spare rows of the cache, and what a new prompt has in common with them."""

from __future__ import annotations

import itertools
from typing import NamedTuple

import numpy as np


class Kept(NamedTuple):
    """A spare row that takes over a request: slots 0 to `num_present` - 1 already hold the same tokens."""

    row: int
    num_present: int


class PrefixStore:
    """Token ids of the spare rows. Rows are used least recently first; an answer replaces the prompt it goes on from."""

    __slots__ = ("_clock", "_tokens", "_used")

    def __init__(self, first_row: int, num_rows: int) -> None:
        self._tokens: dict[int, np.ndarray] = {first_row + index: np.empty(0, np.int64) for index in range(num_rows)}
        self._used = dict.fromkeys(self._tokens, 0)
        self._clock = itertools.count(1)

    def match(self, prompt: np.ndarray) -> tuple[int, int] | None:
        """The row with the longest common beginning and its length in tokens; None without any row."""
        lengths = {row: common_prefix(tokens, prompt) for row, tokens in self._tokens.items()}
        row = max(lengths, key=lengths.__getitem__, default=None)
        return None if row is None else (row, lengths[row])

    def touch(self, row: int) -> None:
        """Note that `row` was of use."""
        self._used[row] = next(self._clock)

    def keep(self, tokens: np.ndarray) -> Kept | None:
        """Take over `tokens`; None when some row has them already, or there is none."""
        match = self.match(tokens)
        if match is None:
            return None
        row, length = match
        if length == len(tokens):
            self.touch(row)
            return None
        if length < len(self._tokens[row]):
            row = min(self._used, key=self._used.__getitem__)
            length = common_prefix(self._tokens[row], tokens)
        self._tokens[row] = tokens
        self.touch(row)
        return Kept(row, length)


def common_prefix(first: np.ndarray, second: np.ndarray) -> int:
    """Number of leading tokens that two arrays of ids have in common."""
    shorter = min(len(first), len(second))
    differs = first[:shorter] != second[:shorter]
    place = int(differs.argmax()) if shorter else 0
    return place if shorter and differs[place] else shorter

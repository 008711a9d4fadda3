"""How many tokens a cycle of self-speculation will emit at any block length, learned from the cycles there were.

A draft at position i is only looked at if all before it were accepted. So what is learned is the conditional probability that
position i is accepted, from all cycles that got that far, whatever their block length: shortening a block hardly changes the
drafts at its beginning (third-party measurement of the 8B model: less than 0.05 token).
"""

from __future__ import annotations

import numpy as np

# Cycles after which an observation counts half as much: texts change from easy to hard within an answer.
HALF_LIFE = 50.0
# Before anything is known: as if so many cycles had been seen, of which this share was accepted at every position. Hopeful,
# because a hope is corrected by the first cycles, while without any nothing would be learned.
PRIOR_CYCLES, PRIOR_SHARE = 2.0, 0.95
# What all requests know counts as so many cycles of a request's own.
SHARED_CYCLES = 4.0
# Share of the newest in the mean length of answers.
_NEWEST_ANSWER = 0.05


class AcceptanceModel:
    """Conditional acceptance of positions 1 to `longest` - 1 of a block."""

    __slots__ = ("_accepted", "_answer_tokens", "_decay", "_new", "_tried", "num_observed")

    def __init__(self, longest: int, half_life: float = HALF_LIFE, prior_cycles: float = PRIOR_CYCLES) -> None:
        """Start with the prior, for blocks of up to `longest` tokens."""
        self._decay = 0.5 ** (1 / half_life)
        self._tried = np.full(longest - 1, prior_cycles)
        self._accepted = np.full(longest - 1, prior_cycles * PRIOR_SHARE)
        # Cycles since the counts were used last: positions that were tried, and accepted.
        self._new: list[tuple[int, int]] = []
        self.num_observed = 0
        self._answer_tokens: float | None = None

    @property
    def longest(self) -> int:
        """Tokens of the longest block."""
        return len(self._tried) + 1

    @property
    def num_cycles(self) -> float:
        """Cycles that are known, older ones less."""
        self._count()
        return float(self._tried[0])

    def observe(self, block_length: int, accepted: int) -> None:
        """Take in a cycle: `accepted` of `block_length` - 1 drafts, 0 to all of them."""
        self.num_observed += 1
        self._new.append((min(accepted + 1, block_length - 1), accepted))

    def observe_answer(self, num_tokens: int) -> None:
        """Take in an answer that ended after so many tokens."""
        if self._answer_tokens is None:
            self._answer_tokens = float(num_tokens)
        self._answer_tokens += _NEWEST_ANSWER * (num_tokens - self._answer_tokens)

    def kept(self, tokens: np.ndarray) -> np.ndarray:
        """Of expected tokens of a cycle, those that an answer keeps; float64 like `tokens`.

        The last cycle of an answer reaches beyond its end, by half of what it could emit on average.
        """
        if self._answer_tokens is None:
            return tokens
        found: np.ndarray = tokens * self._answer_tokens / (self._answer_tokens + (tokens - 1) / 2)
        return found

    def shares(self, known: AcceptanceModel | None = None, known_cycles: float = SHARED_CYCLES) -> np.ndarray:
        """Share of accepted drafts at every position, float64 [longest - 1].

        What `known` says counts as `known_cycles` cycles.
        """
        if known is None:
            known, known_cycles = self, 0.0
        known._count()
        self._count()
        shares: np.ndarray = (self._accepted + known_cycles * known._accepted / known._tried) / (self._tried + known_cycles)
        return shares

    def _count(self) -> None:
        """Take the new cycles into the counts, in their order: each halves what is older a little where it tried."""
        if not self._new:
            return
        positions = np.arange(self.longest - 1)
        num_tried, num_accepted = np.array(self._new).T[..., None]
        self._new.clear()
        tried, accepted = positions < num_tried, positions < num_accepted
        num_later = np.cumsum(tried[::-1], axis=0)[::-1] - tried
        weights = tried * self._decay**num_later
        fading = self._decay ** tried.sum(axis=0)
        self._tried = self._tried * fading + weights.sum(axis=0)
        self._accepted = self._accepted * fading + (weights * accepted).sum(axis=0)

    def tokens(self, block_length: int) -> float:
        """Expected tokens of a cycle, the verifier's own included."""
        return float(expected_tokens(self.shares(), np.array([block_length]))[0])


def expected_tokens(shares: np.ndarray, block_lengths: np.ndarray) -> np.ndarray:
    """Expected tokens of a cycle, the verifier's own included.

    Args:
        shares: conditional acceptance of every position, float64 [..., L - 1].
        block_lengths: int64 [C], 1 to L.

    Returns:
        float64 [..., C].
    """
    first = np.ones((*shares.shape[:-1], 1))
    tokens = np.concatenate([first, 1 + np.cumprod(shares, axis=-1).cumsum(axis=-1)], axis=-1)
    found: np.ndarray = tokens[..., block_lengths - 1]
    return found

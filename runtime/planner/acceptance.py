"""How many tokens a cycle of self-speculation will emit at any block length, learned from the cycles there were.

A draft at position i is only looked at if all before it were accepted. So what is learned is the conditional probability that
position i is accepted, from all cycles that got that far, whatever their block length: shortening a block hardly changes the
drafts at its beginning (third-party measurement of the 8B model: less than 0.05 token).
"""

from __future__ import annotations

from collections.abc import Sequence

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
    """Conditional acceptance of positions 1 to `longest` - 1 of a block.

    Attributes:
        counts: cycles that tried a position, and that accepted it, older ones less; float64 [2, L - 1].
        new_cycles: not in `counts` yet, oldest first: positions that were tried, and accepted. All at once they take less time.
        decay: of what is older where a cycle tries.
        num_observed: cycles ever.
    """

    __slots__ = ("_answer_tokens", "counts", "decay", "new_cycles", "num_observed")

    def __init__(self, longest: int, half_life: float = HALF_LIFE, prior_cycles: float = PRIOR_CYCLES) -> None:
        """Start with the prior, for blocks of up to `longest` tokens."""
        self.decay = 0.5 ** (1 / half_life)
        self.counts = np.outer([prior_cycles, prior_cycles * PRIOR_SHARE], np.ones(longest - 1))
        self.new_cycles: list[tuple[int, int]] = []
        self.num_observed = 0
        self._answer_tokens: float | None = None

    @property
    def longest(self) -> int:
        """Tokens of the longest block."""
        return self.counts.shape[1] + 1

    @property
    def num_cycles(self) -> float:
        """Cycles that are known, older ones less."""
        if self.new_cycles:
            _counts_of([self])
        return float(self.counts[0, 0])

    def observe(self, block_length: int, accepted: int) -> None:
        """Take in a cycle: `accepted` of `block_length` - 1 drafts, 0 to all of them."""
        self.num_observed += 1
        self.new_cycles.append((min(accepted + 1, block_length - 1), accepted))

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

    def shares(self) -> np.ndarray:
        """Share of accepted drafts at every position, float64 [L - 1]."""
        tried, accepted = _counts_of([self])[0]
        found: np.ndarray = accepted / tried
        return found

    def tokens(self, block_length: int) -> float:
        """Expected tokens of a cycle, the verifier's own included."""
        return float(expected_tokens(self.shares(), np.array([block_length]))[0])


def shares_of(models: Sequence[AcceptanceModel], known: AcceptanceModel, known_cycles: float = SHARED_CYCLES) -> np.ndarray:
    """Share of accepted drafts by model and position, where what `known` says counts as `known_cycles` cycles of their own.

    Returns:
        float64 [R, L - 1].
    """
    counts = _counts_of(models)
    found: np.ndarray = (counts[:, 1] + known_cycles * known.shares()) / (counts[:, 0] + known_cycles)
    return found


def _counts_of(models: Sequence[AcceptanceModel]) -> np.ndarray:
    """Counts of models with one half life, their new cycles taken in; float64 [R, 2, L - 1]."""
    counts: np.ndarray = np.stack([model.counts for model in models])
    most = max(len(model.new_cycles) for model in models)
    if not most:
        return counts
    none = (0, 0)
    new = np.array([[none] * (most - len(model.new_cycles)) + model.new_cycles for model in models])
    # By model, cycle and position: whether it was tried, and accepted; and how many cycles tried it from this one on.
    was = np.arange(counts.shape[2]) < new.transpose(2, 0, 1)[..., None]
    num_tries = was[0, :, ::-1].cumsum(axis=1)[:, ::-1]
    faded = models[0].decay ** np.arange(-1, most)
    added = (was * faded[num_tries]).sum(axis=2)
    counts = counts * (faded[num_tries[:, :1]] * models[0].decay) + added.transpose(1, 0, 2)
    for model, own in zip(models, counts, strict=True):
        model.new_cycles.clear()
        model.counts = own
    return counts


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

"""How many tokens a cycle of self-speculation will emit at any block length, learned from the cycles there were.

A draft at position i is only looked at if all before it were accepted. So what is learned is the conditional probability that
position i is accepted, from all cycles that got that far, whatever their block length: shortening a block hardly changes the
drafts at its beginning (third-party measurement of the 8B model: less than 0.05 token).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

# Cycles after which an observation counts half as much: texts change from easy to hard within an answer.
HALF_LIFE = 100.0
# Before anything is known: as if so many cycles had been seen, of which this share was accepted at every position. Hopeful,
# because a hope is corrected by the first cycles, while without any nothing would be learned.
PRIOR_CYCLES, PRIOR_SHARE = 2.0, 0.95
# What all requests showed when their answers were about as long counts as so many cycles of a request's own; and what they
# showed at any length as so many of these: texts become harder or easier on the way, and long ones are others than short ones.
SHARED_CYCLES, OVERALL_CYCLES = 4.0, 16.0
# Weights are brought back to 1 before they are too large to be added up.
_LARGEST_WEIGHT = 1e100
# What a position nobody tried lately is held to have seen of the prior.
_ALMOST_NOTHING = 1e-9
# Lengths of answers that are told apart.
_NUM_PARTS = 14
# Share of the newest in the mean length of answers.
_NEWEST_ANSWER = 0.05


class AcceptanceModel:
    """Conditional acceptance of positions 1 to `longest` - 1 of a block.

    Attributes:
        ends: cycles that accepted 0 to `longest` - 1 drafts, older ones less: those that rejected the next one, and those
            whose block ended there; float64 [2, L]. In units of `newest`.
        newest: weight of the newest cycle, which grows instead of all others becoming less.
    """

    __slots__ = ("_all", "_growth", "ends", "newest")

    def __init__(self, longest: int, half_life: float = HALF_LIFE, prior_cycles: float = PRIOR_CYCLES) -> None:
        """Start with the prior, for blocks of up to `longest` tokens."""
        self._growth = 2 ** (1 / half_life)
        self.newest = 1.0
        self.ends = np.zeros((2, longest))
        if prior_cycles:
            self.ends[0, :-1] = prior_cycles * (1 - PRIOR_SHARE) * PRIOR_SHARE ** np.arange(longest - 1)
            self.ends[1, -1] = prior_cycles * PRIOR_SHARE ** (longest - 1)
        # The sum of `ends`.
        self._all = prior_cycles

    @property
    def longest(self) -> int:
        """Tokens of the longest block."""
        return len(self.ends[0])

    @property
    def num_cycles(self) -> float:
        """Cycles that are known, older ones less."""
        return self._all / self.newest

    def observe(self, block_length: int, accepted: int) -> None:
        """Take in a cycle: `accepted` of `block_length` - 1 drafts, 0 to all of them."""
        self.newest *= self._growth
        if self.newest > _LARGEST_WEIGHT:
            self.ends /= self.newest
            self._all /= self.newest
            self.newest = 1.0
        self._all += self.newest
        self.ends[int(accepted == block_length - 1), accepted] += self.newest

    def shares(self) -> np.ndarray:
        """Share of accepted drafts at every position, float64 [L - 1]."""
        return _shares(_counts_of([self])[0])

    def tokens(self, block_length: int) -> float:
        """Expected tokens of a cycle, the verifier's own included."""
        return float(expected_tokens(self.shares(), np.array([block_length]))[0])


class SharedAcceptance(AcceptanceModel):
    """What all requests of a loop showed, and how long their answers became.

    Attributes:
        by_progress: of cycles behind 0, 1, 2 to 3, 4 to 7, ... tokens of an answer.
    """

    __slots__ = ("_answer_tokens", "_noted", "by_progress")

    def __init__(self, longest: int, half_life: float = HALF_LIFE) -> None:
        """Start with the prior, for blocks of up to `longest` tokens."""
        super().__init__(longest, half_life)
        self.by_progress = [AcceptanceModel(longest, half_life, prior_cycles=0.0) for _ in range(_NUM_PARTS)]
        self._answer_tokens: float | None = None
        self._noted: list[tuple[AcceptanceModel, int, int, int]] = []

    def note(self, own: AcceptanceModel, num_emitted: int, block_length: int, accepted: int) -> None:
        """Keep a cycle of a request until `take_in`: many at once take a fifth of the time that one takes between engine runs.

        Args:
            own: acceptance of the request.
            num_emitted: tokens of its answer before the cycle.
            block_length: of the cycle.
            accepted: drafts of it that were right, 0 to `block_length` - 1.
        """
        self._noted.append((own, num_emitted, block_length, accepted))

    def take_in(self) -> None:
        """Observe the cycles that were noted, for their requests and for all."""
        for own, num_emitted, block_length, accepted in self._noted:
            for model in (own, self.part(num_emitted), self):
                model.observe(block_length, accepted)
        self._noted.clear()

    def part(self, num_emitted: int) -> AcceptanceModel:
        """Of cycles behind about so many tokens, as far as they were taken in."""
        return self.by_progress[min(num_emitted.bit_length(), _NUM_PARTS - 1)]

    def observe_answer(self, num_tokens: int) -> None:
        """Take in an answer that ended after so many tokens."""
        if self._answer_tokens is None:
            self._answer_tokens = float(num_tokens)
        self._answer_tokens += _NEWEST_ANSWER * (num_tokens - self._answer_tokens)

    def remaining(self, num_emitted: float) -> float:
        """Tokens that answers with so many tokens have left, if they become as long as most; 0 while no length is known."""
        return max(0.0, (self._answer_tokens or 0.0) - num_emitted)

    def kept(self, tokens: np.ndarray) -> np.ndarray:
        """Of expected tokens of a cycle, those that an answer keeps; float64 like `tokens`.

        The last cycle of an answer reaches beyond its end, by half of what it could emit on average.
        """
        if self._answer_tokens is None:
            return tokens
        found: np.ndarray = tokens * self._answer_tokens / (self._answer_tokens + (tokens - 1) / 2)
        return found


def shares_of(models: Sequence[AcceptanceModel], parts: Sequence[AcceptanceModel], overall: AcceptanceModel) -> np.ndarray:
    """Share of accepted drafts by request and position.

    Args:
        models: what each request showed.
        parts: what all showed where their answers were as long as this one.
        overall: what all showed.

    Returns:
        float64 [R, L - 1].
    """
    num_requests = len(models)
    counts = _counts_of([*models, *parts, overall])
    shares = _shares(counts[-1])
    for own, num_cycles in ((counts[num_requests:-1], OVERALL_CYCLES), (counts[:num_requests], SHARED_CYCLES)):
        shares = (own[:, 1] + num_cycles * shares) / (own[:, 0] + num_cycles)
    found: np.ndarray = shares
    return found


def _shares(counts: np.ndarray) -> np.ndarray:
    """Accepted among those that tried, float64 [L - 1], of counts [2, L - 1]."""
    tried, accepted = counts
    found: np.ndarray = (accepted + _ALMOST_NOTHING * PRIOR_SHARE) / (tried + _ALMOST_NOTHING)
    return found


def _counts_of(models: Sequence[AcceptanceModel]) -> np.ndarray:
    """Cycles that tried a position, and that accepted it, older ones less; float64 [R, 2, L - 1]."""
    ends = np.array([model.ends for model in models])
    ends /= np.array([model.newest for model in models])[:, None, None]
    # Whoever accepted as many drafts or more.
    accepted = ends.sum(axis=1)[:, :0:-1].cumsum(axis=1)[:, ::-1]
    # Position n was tried by those that accepted it, and by those that rejected it after n - 1.
    return np.stack([accepted + ends[:, 0, :-1], accepted], axis=1)


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

"""How many drafts a simulated verification accepts.

As in the planner, a position of a block is accepted with a probability given that all before it were, whatever the length
of the block.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np

from nemodiff_trt.errors import InvalidInputError

# Tokens a cycle by block length, 8B with adapter: means published with the third-party step times of a B200.
PUBLISHED_TOKENS = {8: 5.78, 16: 8.53, 32: 11.36}
# Halvings of an interval of shares: further ones do not change a float.
_BISECTIONS = 60


@dataclass(frozen=True, slots=True)
class AcceptanceProfile:
    """`shares` float64 [N]: probability that draft 1 to N is accepted if all before it were.

    Raises:
        InvalidInputError: empty, or a share is not between 0 and 1.
    """

    shares: np.ndarray

    def __post_init__(self) -> None:
        if not self.shares.size or not ((self.shares >= 0) & (self.shares <= 1)).all():
            raise InvalidInputError("acceptance", self.shares.tolist(), "shares from 0 to 1, one a draft")

    @classmethod
    def from_histogram(cls, cycles: Mapping[int, int], block_length: int) -> Self:
        """Of measured cycles: `cycles[n]` of them accepted n drafts, as `TriModeEngine.stats` counts.

        Raises:
            InvalidInputError: no cycles, or more drafts accepted than a block has.
        """
        counts = np.zeros(block_length)
        for accepted, count in cycles.items():
            if not 0 <= accepted < block_length or count < 0:
                raise InvalidInputError("acceptance", f"{count} cycles of {accepted}", f"0 to {block_length - 1} drafts")
            counts[accepted] = count
        reached = np.cumsum(counts[::-1])[::-1]
        if not reached[0]:
            raise InvalidInputError("acceptance", "no cycles", "at least one cycle")
        return cls(reached[1:] / np.maximum(reached[:-1], 1))

    @classmethod
    def from_means(cls, tokens: Mapping[int, float]) -> Self:
        """With the given mean tokens a cycle at some block lengths, and one share for all positions between two of them.

        Raises:
            InvalidInputError: no such profile.
        """
        shares: list[float] = []
        for block_length in sorted(tokens):
            num_more = block_length - 1 - len(shares)
            reached, mean = float(np.prod(shares)), 1 + float(np.cumprod(shares).sum())
            wanted = tokens[block_length] - mean
            if not 0 <= wanted <= reached * num_more:
                allowed = f"{mean:.3g} to {mean + reached * num_more:.3g} tokens"
                raise InvalidInputError(f"tokens a cycle at block length {block_length}", tokens[block_length], allowed)
            low, high = 0.0, 1.0
            for _ in range(_BISECTIONS):
                share = (low + high) / 2
                is_low = reached * float(np.cumprod(np.full(num_more, share)).sum()) < wanted
                low, high = (share, high) if is_low else (low, share)
            shares += [high] * num_more
        return cls(np.array(shares))

    def tokens(self, block_length: int) -> float:
        """Mean tokens of a cycle, the verifier's own included."""
        return 1 + float(np.cumprod(self.shares[: block_length - 1]).sum())

    def draw(self, generator: np.random.Generator, num_drafts: int) -> int:
        """Accepted drafts of one cycle, 0 to `num_drafts`. Positions without a share of their own take the last one."""
        chances = self.shares[:num_drafts]
        rejected = np.flatnonzero(generator.random(len(chances)) >= chances)
        if rejected.size:
            return int(rejected[0])
        more = num_drafts - len(chances)
        rejected = np.flatnonzero(generator.random(more) >= self.shares[-1])
        return len(chances) + (int(rejected[0]) if rejected.size else more)


def read_acceptance(path: Path) -> dict[str, AcceptanceProfile]:
    """Profiles by category, of a JSON file: category -> {"block_length": B, "accepted": {drafts: cycles}}.

    Raises:
        InvalidInputError: it is missing or not such a file.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return {
            str(category): AcceptanceProfile.from_histogram(
                {int(accepted): int(count) for accepted, count in measured["accepted"].items()}, int(measured["block_length"])
            )
            for category, measured in content.items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        allowed = "a JSON file of category -> {block_length, accepted: {drafts: cycles}}"
        raise InvalidInputError("acceptance", f"{path} ({error})", allowed) from error

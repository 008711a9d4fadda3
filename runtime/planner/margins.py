"""By how much a choice has to be better than another: predictions err, and the best of many owes something to chance."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Margins:
    """Shares of a predicted speed.

    Attributes:
        change: another choice has to promise so much more: groups of rows should not fall apart for nothing.
        noise: added to that, over the square root of the cycles that a prediction comes from.
        over_ar: drafting has to promise so much more than decoding all requests autoregressively, whose speed depends on no
            acceptance that may be wrong; and two groups so much more than one.
        spread: two groups are looked for where the best drafts get so many more tokens than the worst.
    """

    change: float = 0.02
    noise: float = 0.1
    over_ar: float = 0.05
    spread: float = 0.5

    def of_a_change(self, num_cycles: float) -> float:
        """That another choice has to be better by, where so many cycles are known; more than none."""
        return self.change + self.noise / math.sqrt(num_cycles)

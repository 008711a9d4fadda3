"""Does a sample come from a distribution? Seeds are fixed, so a verdict never changes."""

from __future__ import annotations

import numpy as np

# Standard deviations. A right sampler exceeds it once in 30,000 seeds.
LIMIT = 4.0
# For the normal approximation of a cell.
_LEAST_EXPECTED = 5.0


def deviation(counts: np.ndarray, probabilities: np.ndarray) -> float:
    """How far Pearson's statistic is above its mean, in standard deviations of a normal variable (Wilson and Hilferty, 1931).

    Args:
        counts: [V], of a sample.
        probabilities: [V]; cells that are too rare are one cell together. What cannot occur and did is infinitely far off.
    """
    if counts[probabilities == 0].any():
        return np.inf
    expected = probabilities * counts.sum()
    rare = expected < _LEAST_EXPECTED
    cells = [*zip(counts[~rare], expected[~rare], strict=True)]
    if expected[rare].sum() >= _LEAST_EXPECTED:
        cells.append((counts[rare].sum(), expected[rare].sum()))
    degrees = len(cells) - 1
    assert degrees >= 1, "nothing to compare"
    statistic = sum((count - wanted) ** 2 / wanted for count, wanted in cells)
    spread = 2 / (9 * degrees)
    return float(((statistic / degrees) ** (1 / 3) - (1 - spread)) / spread**0.5)

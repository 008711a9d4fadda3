"""Probabilities to report: of raw logits, before penalties, bias, temperature and filters, over the full vocabulary."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Natural log-probability of an emitted token, and (token, log-probability) of the most probable ones, best first."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


def token_logprobs(logits: np.ndarray, token: int, num_top: int, mask_token_id: int) -> TokenLogprobs:
    """Log-softmax of `logits` float32 [V] for `token` and the `num_top` most probable tokens, the emitted one where it is one.

    The mask id counts in the denominator and is no alternative; of equal tokens the lower id comes first.
    """
    log_total = _log_total(logits)
    top: list[tuple[int, float]] = []
    if num_top:
        # One more, in case the mask id is among them. All that equal the last of them, so that the lowest ids can be taken.
        count = min(num_top + 1, len(logits))
        bound = np.partition(logits, len(logits) - count)[len(logits) - count]
        ids = np.flatnonzero(logits >= bound)
        ids = ids[ids != mask_token_id]
        ids = ids[np.argsort(-logits[ids], kind="stable")][:num_top]
        top = [(int(index), float(logits[index]) - log_total) for index in ids]
    return TokenLogprobs(token, float(logits[token]) - log_total, tuple(top))


def token_confidence(logits: np.ndarray, tokens: np.ndarray, offsets: np.ndarray | None = None) -> np.ndarray:
    """Softmax probability of chosen tokens, as the decision head gives it for greedy ones: float32 [N].

    Args:
        logits: float32 [S,V].
        tokens: int64 [N].
        offsets: rows the tokens are of, int64 [N]; None for all.
    """
    rows = range(len(logits)) if offsets is None else offsets.tolist()
    values = [float(logits[row][token]) - _log_total(logits[row]) for row, token in zip(rows, tokens.tolist(), strict=True)]
    return np.exp(np.array(values, np.float64)).astype(np.float32)


def _log_total(logits: np.ndarray) -> float:
    best = logits.max()
    return float(best) + float(np.log(np.exp(logits - best).sum(dtype=np.float64)))

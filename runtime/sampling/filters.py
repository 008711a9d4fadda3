"""Which tokens are left to draw from.

Top-k, top-p and min-p each keep a leading part of the tokens in order of their scores. Nothing is sorted but the tokens among
which the last one kept is to be found.
"""

from __future__ import annotations

import math

import numpy as np

from nemodiff_trt.runtime.sampling.options import SamplingOptions

# Chunks whose maxima bound the k-th largest score, for each of the k: few of them hold two of the largest.
_CHUNKS_PER_CANDIDATE = 8
# Top-p adds up probabilities in bins of so many log-probabilities below the best; the last bin takes all that is further down.
_BINS_PER_NAT = 16.0
_NUM_BINS = 1024


def keeps_all(options: SamplingOptions, vocab_size: int) -> bool:
    """Whether every token of the vocabulary is left, whatever the scores."""
    return not 0 < options.top_k < vocab_size and options.top_p >= 1 and options.min_p <= 0


def kept_tokens(scores: np.ndarray, best: float, options: SamplingOptions, scratch: np.ndarray) -> np.ndarray | None:
    """Token ids that top-k, top-p and min-p leave. Of equal scores those with the lowest ids are kept.

    Args:
        scores: float32 [V], logits after penalties and bias, minus infinity for the mask id.
        best: the largest of them.
        options: with a temperature above 0.
        scratch: float32 [V].

    Returns:
        int64 [C], at least one, in no order; None for every token.
    """
    vocab_size = len(scores)
    ids: np.ndarray | None = None
    if 0 < options.top_k < vocab_size:
        ids = _top_k(scores, options.top_k)
        if options.top_p < 1:
            ids = ids[: _prefix_length(_relative(scores, ids, best, options), options.top_p)]
    elif options.top_p < 1:
        ids = _top_p(scores, best, options, scratch)
    if options.min_p > 0:
        if ids is None:
            # A little lower than exact, which the next line is: no rounding error may lose a token here.
            floor = best + options.temperature * math.log(options.min_p)
            ids = np.flatnonzero(scores >= floor - 1e-5 * (1 + abs(floor)))
        ids = ids[_relative(scores, ids, best, options) >= options.min_p]
    return ids


def _relative(scores: np.ndarray, ids: np.ndarray, best: float, options: SamplingOptions) -> np.ndarray:
    """Probabilities of `ids` as multiples of the largest one: float64."""
    result: np.ndarray = np.exp((scores[ids].astype(np.float64) - best) / options.temperature)
    return result


def _ordered(scores: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """`ids`, which rise, in the order of falling scores, equal ones by id."""
    ordered: np.ndarray = ids[np.argsort(-scores[ids], kind="stable")]
    return ordered


def _top_k(scores: np.ndarray, k: int) -> np.ndarray:
    """Ids of the `k` largest scores, in order."""
    size = len(scores) // (_CHUNKS_PER_CANDIDATE * k)
    ids = np.arange(len(scores))
    if size > 1:
        num_chunks = len(scores) // size
        maxima = scores[: num_chunks * size].reshape(num_chunks, size).max(1)
        # At least k scores are this large: the maxima of k chunks.
        bound = np.partition(maxima, num_chunks - k)[num_chunks - k]
        ids = np.flatnonzero(scores >= bound)
    return _ordered(scores, ids)[:k]


def _top_p(scores: np.ndarray, best: float, options: SamplingOptions, scratch: np.ndarray) -> np.ndarray:
    """Ids that top-p leaves of all tokens: full bins, and the leading part of one."""
    np.subtract(np.float32(best), scores, out=scratch)
    np.divide(scratch, np.float32(options.temperature), out=scratch)
    depth = np.minimum(scratch * np.float32(_BINS_PER_NAT), np.float32(_NUM_BINS - 1)).astype(np.int64)
    weights = np.exp(np.negative(scratch, out=scratch), out=scratch)
    masses = np.cumsum(np.bincount(depth, weights, minlength=_NUM_BINS))
    wanted = options.top_p * masses[-1]
    split = int(np.searchsorted(masses, wanted))
    full, partial = np.flatnonzero(depth < split), _ordered(scores, np.flatnonzero(depth == split))
    missing = wanted - (masses[split - 1] if split else 0.0)
    cumulated = np.cumsum(weights[partial], dtype=np.float64)
    return np.concatenate((full, partial[: int(np.searchsorted(cumulated, missing)) + 1]))


def _prefix_length(probabilities: np.ndarray, share: float) -> int:
    """Number of leading entries of float64 [C] that sum up to `share` of all."""
    cumulated = np.cumsum(probabilities)
    return int(np.searchsorted(cumulated, share * cumulated[-1])) + 1

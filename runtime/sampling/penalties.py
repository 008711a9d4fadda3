"""Penalties on tokens that were seen before, and bias."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from nemodiff_trt.runtime.sampling.options import SamplingOptions


class Penalties:
    """What a request changes about logits before it chooses. Counts are kept up to date, so a choice costs the distinct tokens.

    The repetition penalty is that of CTRL (arXiv 1909.05858), over prompt and answer; presence and frequency count the answer.
    """

    __slots__ = ("_answer", "_bias", "_bias_ids", "_counts", "_distinct", "_is_seen", "_num_counted", "_options")

    def __init__(self, options: SamplingOptions, vocab_size: int, prompt: Iterable[int], answer: Sequence[int]) -> None:
        """`answer` is the list the caller appends emitted tokens to; it is read at every choice."""
        self._options = options
        self._answer = answer
        self._num_counted = 0
        self._bias_ids = np.array([token for token, _ in options.bias_pairs], np.int64)
        self._bias = np.array([bias for _, bias in options.bias_pairs], np.float32)
        size = vocab_size if options.has_penalties else 0
        # Times a token is in the answer, and the ids of all tokens seen.
        self._counts, self._is_seen = np.zeros(size, np.int64), np.zeros(size, bool)
        self._distinct: list[int] = []
        if options.has_penalties and options.repetition_penalty != 1:
            self._distinct += sorted({int(token) for token in prompt})
            self._is_seen[self._distinct] = True

    def apply(self, scores: np.ndarray, pending: Sequence[int] = ()) -> None:
        """Change `scores` float32 [V] in place.

        Args:
            scores: logits.
            pending: tokens that are taken to follow the answer.
        """
        if self._options.has_penalties:
            self._count(self._answer[self._num_counted :])
            self._num_counted = len(self._answer)
            num_distinct = len(self._distinct)
            self._count(pending)
            self._penalise(scores)
            for token in pending:
                self._counts[token] -= 1
            self._is_seen[self._distinct[num_distinct:]] = False
            del self._distinct[num_distinct:]
        if len(self._bias_ids):
            scores[self._bias_ids] += self._bias

    def _count(self, tokens: Iterable[int]) -> None:
        for token in tokens:
            self._counts[token] += 1
            if not self._is_seen[token]:
                self._is_seen[token] = True
                self._distinct.append(token)

    def _penalise(self, scores: np.ndarray) -> None:
        options, ids = self._options, np.array(self._distinct, np.int64)
        values, counts = scores[ids], self._counts[ids]
        if options.repetition_penalty != 1:
            values = np.where(values > 0, values / options.repetition_penalty, values * options.repetition_penalty)
        scores[ids] = values - options.frequency_penalty * counts - options.presence_penalty * (counts > 0)

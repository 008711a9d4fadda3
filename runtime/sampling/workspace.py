"""Arrays of the size of the vocabulary that choices are made in."""

from __future__ import annotations

import numpy as np

from nemodiff_trt.runtime.sampling.noise import counters


class SamplingWorkspace:
    """Scratch of all choosers of one model that work one after the other; 28 bytes per token id, and more for blocks."""

    __slots__ = ("_block", "bits", "counter", "mask_token_id", "scores", "shifted", "vocab_size", "weights")

    def __init__(self, vocab_size: int, mask_token_id: int) -> None:
        """Allocate for logits [V]; `mask_token_id` is never chosen."""
        self.vocab_size = vocab_size
        self.mask_token_id = mask_token_id
        self.counter = counters(vocab_size)
        self.bits, self.shifted = (np.empty(vocab_size, np.uint64) for _ in range(2))
        self.scores, self.weights = (np.empty(vocab_size, np.float32) for _ in range(2))
        self._block = np.empty((0, vocab_size))

    def block(self, num_rows: int) -> np.ndarray:
        """Scores of a block float64 [num_rows, V], valid until the next call."""
        if len(self._block) < num_rows:
            self._block = np.empty((num_rows, self.vocab_size))
        return self._block[:num_rows]

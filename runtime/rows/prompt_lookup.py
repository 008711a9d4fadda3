"""Speculation without a drafter: what followed the last tokens where prompt or answer had them before is verified causally.

Prompt lookup decoding is the usual baseline of speculative decoding: free drafts, good where an answer copies. Only the drafts
differ from self-speculation, so greedy output equals greedy `ar`.
"""

from __future__ import annotations

import numpy as np

from nemodiff_trt.runtime.events import RowStep
from nemodiff_trt.runtime.rows.block_row import emit_verified
from nemodiff_trt.runtime.rows.decider import Decider
from nemodiff_trt.runtime.rows.row_decoder import RowOutput
from nemodiff_trt.runtime.sequence import Sequence
from nemodiff_trt.vocabulary import Role


class PromptLookupRow:
    """One causal run a cycle, over the last token and the drafts found for it; without drafts it is a run of `decode`."""

    __slots__ = (
        "_decider", "_drafts", "_history", "_max_ngram", "_num_drafts", "moves", "num_cached", "role", "sequence",
        "step_length",
    )  # fmt: skip

    def __init__(self, sequence: Sequence, num_cached: int, block_length: int, decider: Decider, max_ngram: int) -> None:
        """Look up the first drafts.

        Args:
            sequence: with its first token.
            num_cached: tokens of the prompt.
            block_length: seed and drafts of a run at most, 2 to the built maximum.
            decider: of the request.
            max_ngram: longest run of last tokens to look for; shorter ones are tried after it, down to one token.
        """
        self.sequence = sequence
        self.num_cached = num_cached
        self.moves: tuple[tuple[int, int], ...] = ()
        self._decider = decider
        self._num_drafts = block_length - 1
        self._max_ngram = max_ngram
        self._history: list[int] = sequence.prompt.tolist()
        self._start_cycle(sequence.tokens)

    def fill(self, ids: np.ndarray) -> None:
        ids[0] = self.sequence.tokens[-1]
        ids[1:] = self._drafts

    def absorb(self, output: RowOutput) -> RowStep:
        sequence, drafts = self.sequence, self._drafts
        sequence.forward_passes += 1
        sequence.cycles += 1
        emitted, accepted = emit_verified(sequence, self._decider.verify(output, drafts, len(sequence.tokens)))
        # Seed and accepted drafts stay; the last token is the next seed and not cached yet.
        self.num_cached += len(emitted)
        logprobs = self._decider.logprobs(output, range(len(emitted)), emitted)
        if sequence.finish_reason is None:
            self._start_cycle(emitted)
        return RowStep(emitted, drafts.tolist(), accepted, logprobs=logprobs)

    def _start_cycle(self, emitted: list[int]) -> None:
        self._history += emitted
        self._drafts = look_up(np.asarray(self._history, np.int64), self._num_drafts, self._max_ngram)
        self.step_length = 1 + len(self._drafts)
        self.role = Role.VERIFY if len(self._drafts) else Role.DECODE


def look_up(history: np.ndarray, num_drafts: int, max_ngram: int) -> np.ndarray:
    """What followed the end of `history` int64 [N] where it occurred before: int64 of at most `num_drafts` tokens.

    The longest end that occurred before decides, then how much followed there, then how recent it is.
    """
    for length in range(min(max_ngram, len(history) - 1), 0, -1):
        windows = np.lib.stride_tricks.sliding_window_view(history[:-1], length)
        starts = length + np.flatnonzero((windows == history[-length:]).all(axis=1))
        if len(starts):
            followed = np.minimum(len(history) - starts, num_drafts)
            best = int(starts[followed == followed.max()][-1])
            return history[best : best + num_drafts].copy()
    return history[:0]

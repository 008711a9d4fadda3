"""Autoregressive decoding: one token a run."""

from __future__ import annotations

import numpy as np

from nemodiff_trt.runtime.events import RowStep
from nemodiff_trt.runtime.rows.decider import NO_DRAFTS, Decider
from nemodiff_trt.runtime.rows.row_decoder import RowOutput
from nemodiff_trt.runtime.sequence import Sequence
from nemodiff_trt.vocabulary import Role


class AutoregressiveRow:
    """Feeds its last token and emits the next."""

    __slots__ = ("_decider", "moves", "num_cached", "role", "sequence", "step_length")

    def __init__(self, sequence: Sequence, num_cached: int, decider: Decider) -> None:
        self.sequence = sequence
        self._decider = decider
        self.num_cached = num_cached
        self.moves: tuple[tuple[int, int], ...] = ()
        self.role = Role.DECODE
        self.step_length = 1

    def fill(self, ids: np.ndarray) -> None:
        ids[0] = self.sequence.tokens[-1]

    def absorb(self, output: RowOutput) -> RowStep:
        self.sequence.forward_passes += 1
        self.num_cached += 1
        emitted = self.sequence.emit(self._decider.verify(output, NO_DRAFTS, len(self.sequence.tokens)))
        return RowStep(emitted, logprobs=self._decider.logprobs(output, (0,), emitted))

"""Prefill of one request: its prompt in pieces, and the first token of its answer."""

from __future__ import annotations

import numpy as np

from nemodiff_trt.runtime.events import RowStep
from nemodiff_trt.runtime.rows.decider import NO_DRAFTS, Decider
from nemodiff_trt.runtime.rows.row_decoder import RowOutput
from nemodiff_trt.runtime.sequence import Sequence
from nemodiff_trt.vocabulary import Role


class PromptRow:
    """The part of a prompt that is not in the cache yet. `num_cached` tokens are, some perhaps copied from another row."""

    __slots__ = ("decider", "num_cached", "role", "sequence", "step_length")

    def __init__(self, sequence: Sequence, decider: Decider) -> None:
        self.sequence = sequence
        self.decider = decider
        self.num_cached = 0
        self.role = Role.PREFILL
        # Of any length, as it suits the run.
        self.step_length = 0

    @property
    def num_remaining(self) -> int:
        return len(self.sequence.prompt) - self.num_cached

    def fill(self, ids: np.ndarray) -> int:
        """Write the next tokens into `ids` int64 [S], zeros behind them; returns how many there are.

        Padding needs no mask: it lies behind the last real token, nothing reads it, and the next run writes over it.
        """
        part = self.sequence.prompt[self.num_cached : self.num_cached + len(ids)]
        ids[: len(part)] = part
        ids[len(part) :] = 0
        return len(part)

    def absorb(self, num_tokens: int, output: RowOutput) -> RowStep:
        """Count `num_tokens` as cached; with the last of the prompt, row 0 of `output` decides the first token."""
        self.num_cached += num_tokens
        self.sequence.prefill_passes += 1
        if self.num_remaining:
            return RowStep([])
        emitted = self.sequence.emit(self.decider.verify(output, NO_DRAFTS, 0))
        return RowStep(emitted, logprobs=self.decider.logprobs(output, (0,), emitted))

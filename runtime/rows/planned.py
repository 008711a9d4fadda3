"""Decoding whose mode is chosen anew for every cycle: autoregressive, or self-speculation of any block length.

Both give the same tokens, so switching between two cycles needs nothing but the last token and the length of the cache.
"""

from __future__ import annotations

import numpy as np

from nemodiff_trt.runtime.events import RowStep
from nemodiff_trt.runtime.planner import Choice, PlannedRequest
from nemodiff_trt.runtime.rows.autoregressive import AutoregressiveRow
from nemodiff_trt.runtime.rows.decider import Decider
from nemodiff_trt.runtime.rows.row_decoder import RowOutput
from nemodiff_trt.runtime.rows.self_speculation import SelfSpeculationRow
from nemodiff_trt.runtime.sequence import Sequence
from nemodiff_trt.vocabulary import Role


class PlannedRow:
    """Decodes as its `request` says."""

    __slots__ = (
        "_choice",
        "_decider",
        "_mask_token_id",
        "_row",
        "moves",
        "num_cached",
        "request",
        "role",
        "sequence",
        "step_length",
    )

    def __init__(
        self, sequence: Sequence, num_cached: int, mask_token_id: int, decider: Decider, request: PlannedRequest
    ) -> None:
        """Start autoregressively.

        Args:
            sequence: with its first token.
            num_cached: tokens of the prompt.
            mask_token_id: fills blocks before they are drafted.
            decider: of the request.
            request: told of every cycle; a policy sets how the next one is decoded.
        """
        self.sequence = sequence
        self.moves: tuple[tuple[int, int], ...] = ()
        self._mask_token_id = mask_token_id
        self._decider = decider
        self.request = request
        self._choice = Choice(1)
        self._take(AutoregressiveRow(sequence, num_cached, decider))

    def follow(self) -> None:
        """Decode as `request.next_cycle` says from now on. Called between two cycles."""
        choice = self.request.next_cycle
        if choice is self._choice:
            return
        self._choice = choice
        sequence, num_cached = self.sequence, self.num_cached
        if choice.drafts:
            self._take(SelfSpeculationRow(sequence, num_cached, choice.block_length, self._mask_token_id, self._decider))
        else:
            self._take(AutoregressiveRow(sequence, num_cached, self._decider))

    def _take(self, row: AutoregressiveRow | SelfSpeculationRow) -> None:
        # Copies, because the loop asks for these many times in a cycle.
        self._row: AutoregressiveRow | SelfSpeculationRow = row
        self.role, self.step_length, self.num_cached = row.role, row.step_length, row.num_cached

    def fill(self, ids: np.ndarray) -> None:
        self._row.fill(ids)

    def absorb(self, output: RowOutput) -> RowStep:
        role = self.role
        report = self._row.absorb(output)
        self._take(self._row)
        if self.sequence.finish_reason is not None:
            # The last cycle of an answer is cut, so it does not tell how far drafts are right.
            self.request.end(len(self.sequence.tokens))
        elif role is Role.VERIFY:
            self.request.observe(report.accepted)
        return report

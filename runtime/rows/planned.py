"""Decoding whose mode is chosen anew for every cycle: autoregressive, or self-speculation of any block length.

Both give the same tokens, so switching between two cycles needs nothing but the last token and the length of the cache.
"""

from __future__ import annotations

from nemodiff_trt.runtime.events import RowStep
from nemodiff_trt.runtime.planner import Choice, PlannedRequest
from nemodiff_trt.runtime.rows.autoregressive import AutoregressiveRow
from nemodiff_trt.runtime.rows.decider import Decider
from nemodiff_trt.runtime.rows.row_decoder import RowDecoder
from nemodiff_trt.runtime.rows.self_speculation import SelfSpeculationRow
from nemodiff_trt.runtime.sequence import FinishReason, Sequence


class PlannedRows:
    """The rows of one request, one after another: as its `request` says, which is told how their drafts did."""

    __slots__ = ("_choice", "_decider", "_mask_token_id", "request")

    def __init__(self, mask_token_id: int, decider: Decider, request: PlannedRequest) -> None:
        """Follow a request that starts autoregressively.

        Args:
            mask_token_id: fills blocks before they are drafted.
            decider: of the request.
            request: told of every cycle; a policy sets how the next one is decoded.
        """
        self._mask_token_id = mask_token_id
        self._decider = decider
        self._choice = Choice(1)
        self.request = request

    def following(self, row: RowDecoder) -> RowDecoder:
        """The row that decodes the next cycle after `row`, which decoded the last one."""
        choice = self.request.next_cycle
        if choice is self._choice:
            return row
        self._choice = choice
        sequence, num_cached = row.sequence, row.num_cached
        if not choice.drafts:
            return AutoregressiveRow(sequence, num_cached, self._decider)
        return SelfSpeculationRow(sequence, num_cached, choice.block_length, self._mask_token_id, self._decider)

    def take_in(self, sequence: Sequence, report: RowStep) -> None:
        """Tell the request of a verification. The last of an answer is cut, so it does not show how far drafts are right."""
        if sequence.finish_reason is None:
            self.request.num_emitted = len(sequence.tokens) - len(report.emitted)
            self.request.observe(report.accepted)

    def end(self, sequence: Sequence) -> None:
        """Tell the request how long its answer became, unless it was given up."""
        if sequence.finish_reason not in (FinishReason.CANCELLED, FinishReason.DEADLINE):
            self.request.end(len(sequence.tokens))

"""Self-speculation: one model drafts a block bidirectionally and verifies it causally. Greedy output equals greedy `ar`.

Method: Nemotron-Labs-Diffusion, arXiv 2607.05722, linear self-speculation.
"""

from __future__ import annotations

from nemodiff_trt.runtime.events import RowStep
from nemodiff_trt.runtime.rows.block_row import BlockRow, emit_verified
from nemodiff_trt.runtime.rows.decider import Decider
from nemodiff_trt.runtime.rows.mask_filling import fix_masks
from nemodiff_trt.runtime.rows.row_decoder import RowOutput
from nemodiff_trt.runtime.sequence import Sequence
from nemodiff_trt.vocabulary import Role


class SelfSpeculationRow(BlockRow):
    """Alternates draft and verify runs over one block; every cycle accepts its own number of tokens."""

    __slots__ = ("_passes_left", "_threshold")

    def __init__(
        self,
        sequence: Sequence,
        num_cached: int,
        block_length: int,
        mask_token_id: int,
        decider: Decider,
        threshold: float = 0.0,
    ) -> None:
        """Start the first cycle; arguments as of `BlockRow`.

        Args:
            sequence: likewise.
            num_cached: likewise.
            block_length: likewise.
            mask_token_id: likewise.
            decider: likewise.
            threshold: 0 drafts in one pass; above 0 each pass fixes the guesses of at least this confidence, the best always.
        """
        super().__init__(sequence, num_cached, block_length, mask_token_id, decider)
        self._threshold = threshold
        self._start_cycle()

    def absorb(self, output: RowOutput) -> RowStep:
        self.sequence.forward_passes += 1
        if self.role is not Role.DRAFT:
            self.sequence.cycles += 1
            return self._accept(output)
        self.sequence.draft_passes += 1
        return self._draft_more(output) if self._threshold > 0 else self._draft_all(output)

    def _start_cycle(self) -> None:
        self._start_block(Role.DRAFT)
        # Every pass fixes at least one position, so there are at most as many passes as masks.
        self._passes_left = len(self._block) - 1

    def _draft_all(self, output: RowOutput) -> RowStep:
        self._block[1:] = self._decider.draft(output, len(self.sequence.tokens))
        self.role = Role.VERIFY
        return RowStep([], drafted=self._block[1:].tolist())

    def _draft_more(self, output: RowOutput) -> RowStep:
        position = len(self.sequence.tokens) - 1
        committed = fix_masks(self._block, output, self._decider, self._mask_token_id, self._threshold, 1, position)
        self._passes_left -= 1
        if self._passes_left and (self._block == self._mask_token_id).any():
            return RowStep([], committed=committed)
        self.role = Role.VERIFY
        return RowStep([], drafted=self._block[1:].tolist(), committed=committed)

    def _accept(self, output: RowOutput) -> RowStep:
        sequence, drafts = self.sequence, self._block[1:]
        emitted, accepted = emit_verified(sequence, self._decider.verify(output, drafts, len(sequence.tokens)))
        # Seed and accepted drafts stay; the last token is the next seed and not cached yet.
        self.num_cached += len(emitted)
        logprobs = self._decider.logprobs(output, range(len(emitted)), emitted)
        report = RowStep(emitted, drafts.tolist(), accepted, logprobs=logprobs)
        if sequence.finish_reason is None:
            self._start_cycle()
        return report

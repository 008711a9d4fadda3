"""Self-speculation: one model drafts a block bidirectionally and verifies it causally. Greedy output equals greedy `ar`.

Method: Nemotron-Labs-Diffusion, arXiv 2607.05722, linear self-speculation.
"""

from __future__ import annotations

import numpy as np

from nemodiff_trt.runtime.events import RowStep
from nemodiff_trt.runtime.rows.decider import Decider
from nemodiff_trt.runtime.rows.mask_filling import fix_masks
from nemodiff_trt.runtime.rows.row_decoder import RowOutput
from nemodiff_trt.runtime.sequence import Sequence
from nemodiff_trt.vocabulary import Role


class SelfSpeculationRow:
    """Alternates draft and verify runs over one block; every cycle accepts its own number of tokens."""

    __slots__ = (
        "_block", "_decider", "_mask_token_id", "_passes_left", "_threshold", "moves", "num_cached", "role", "sequence",
        "step_length",
    )  # fmt: skip

    def __init__(
        self,
        sequence: Sequence,
        num_cached: int,
        block_length: int,
        mask_token_id: int,
        decider: Decider,
        threshold: float = 0.0,
    ) -> None:
        """Start the first cycle.

        Args:
            sequence: with its first token.
            num_cached: tokens of the prompt.
            block_length: seed and drafts of a cycle, 2 to the built maximum.
            mask_token_id: fills the block before it is drafted.
            decider: of the request.
            threshold: 0 drafts in one pass; above 0 each pass fixes the guesses of at least this confidence, the best always.
        """
        self.sequence = sequence
        self.num_cached = num_cached
        self.moves: tuple[tuple[int, int], ...] = ()
        self.step_length = block_length
        self._mask_token_id = mask_token_id
        self._decider = decider
        self._threshold = threshold
        self._block = np.empty(block_length, np.int64)
        self._start_cycle()

    def fill(self, ids: np.ndarray) -> None:
        ids[:] = self._block

    def absorb(self, output: RowOutput) -> RowStep:
        self.sequence.forward_passes += 1
        if self.role is Role.VERIFY:
            self.sequence.cycles += 1
            return self._accept(output)
        self.sequence.draft_passes += 1
        return self._draft_more(output) if self._threshold > 0 else self._draft_all(output)

    def _start_cycle(self) -> None:
        self._block[0] = self.sequence.tokens[-1]
        self._block[1:] = self._mask_token_id
        # Every pass fixes at least one position, so there are at most as many passes as masks.
        self._passes_left = self.step_length - 1
        self.role = Role.DRAFT

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
        verified = self._decider.verify(output, drafts, len(sequence.tokens))
        emitted = sequence.emit(verified)
        is_own = sequence.was_cut or len(emitted) == len(verified)
        accepted = len(emitted) - is_own
        sequence.accepted_drafts += accepted
        # Seed and accepted drafts stay; the last token is the next seed and not cached yet.
        self.num_cached += len(emitted)
        report = RowStep(
            emitted, drafts.tolist(), accepted, logprobs=self._decider.logprobs(output, range(len(emitted)), emitted)
        )
        if sequence.finish_reason is None:
            self._start_cycle()
        return report

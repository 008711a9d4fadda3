"""Block diffusion: fill a block of masks over several bidirectional runs, then commit it with one causal run.

Method: Nemotron-Labs-Diffusion, arXiv 2607.05722, block-wise denoising with causal commits.
"""

from __future__ import annotations

import numpy as np

from nemodiff_trt.runtime.decisions import CommitRule, commit_masks
from nemodiff_trt.runtime.events import RowStep
from nemodiff_trt.runtime.rows.row_decoder import RowOutput
from nemodiff_trt.runtime.sequence import Sequence
from nemodiff_trt.vocabulary import Role


class DiffusionRow:
    """Denoises a block until it is complete, then commits it.

    Tokens are emitted as soon as no mask is left of them. A block is complete when its last token is emitted, the answer ends
    in it, or the thinking budget cuts it.
    """

    __slots__ = (
        "_block",
        "_mask_token_id",
        "_num_emitted",
        "_pass",
        "_rule",
        "moves",
        "num_cached",
        "role",
        "sequence",
        "step_length",
    )

    def __init__(self, sequence: Sequence, num_cached: int, block_length: int, mask_token_id: int, rule: CommitRule) -> None:
        """Start the first block.

        Args:
            sequence: with its first token.
            num_cached: tokens of the prompt.
            block_length: seed and masks of a block, 2 to the built maximum.
            mask_token_id: marks the positions to fill.
            rule: which of them a pass fixes.
        """
        self.sequence = sequence
        self.num_cached = num_cached
        self.moves: tuple[tuple[int, int], ...] = ()
        self.step_length = block_length
        self._mask_token_id = mask_token_id
        self._rule = rule
        self._block = np.empty(block_length, np.int64)
        self._start_block()

    def fill(self, ids: np.ndarray) -> None:
        ids[:] = self._block

    def absorb(self, output: RowOutput) -> RowStep:
        self.sequence.forward_passes += 1
        return self._commit_block(output) if self.role is Role.VERIFY else self._denoise(output)

    def _start_block(self) -> None:
        self._block[0] = self.sequence.tokens[-1]
        self._block[1:] = self._mask_token_id
        # Leading tokens of the block that are part of the answer, the seed included, and denoise passes so far.
        self._num_emitted, self._pass = 1, 0
        self.role = Role.DENOISE

    def _denoise(self, output: RowOutput) -> RowStep:
        self.sequence.draft_passes += 1
        self.sequence.cycles += self._pass == 0
        quota = self._rule.quota(self._pass, len(self._block) - 1)
        offsets = commit_masks(self._block, output.token, output.confidence, self._mask_token_id, self._rule.threshold, quota)
        self._pass += 1
        committed = [(offset, int(self._block[offset])) for offset in offsets]
        emitted = self._emit_known()
        # Every pass fixes at least one position, so there are at most as many passes as masks.
        is_complete = self._num_emitted == len(self._block) or self._pass == len(self._block) - 1
        if self.sequence.was_cut or is_complete:
            self.role = Role.VERIFY
        return RowStep(emitted, committed=committed)

    def _emit_known(self) -> list[int]:
        """Emit the tokens that have no mask before them any more."""
        ids = self._block.tolist()
        begin = end = self._num_emitted
        while end < len(ids) and ids[end] != self._mask_token_id:
            end += 1
        emitted = self.sequence.emit(ids[begin:end])
        self._num_emitted = begin + len(emitted)
        if self.sequence.was_cut:
            self._block[self._num_emitted - 1] = emitted[-1]
        return emitted

    def _commit_block(self, output: RowOutput) -> RowStep:
        # Tokens right of a cut are not counted, so the next block overwrites them.
        self.num_cached += self._num_emitted
        emitted = self.sequence.emit((int(output.token[self._num_emitted - 1]),))
        if self.sequence.finish_reason is None:
            self._start_block()
        return RowStep(emitted)

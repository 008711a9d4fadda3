"""What rows that fill a block of masks have in common, and how tokens of a causal run enter an answer."""

from __future__ import annotations

from collections.abc import Sequence as Sized

import numpy as np

from nemodiff_trt.runtime.rows.decider import Decider
from nemodiff_trt.runtime.sequence import Sequence
from nemodiff_trt.runtime.step_layout import StepLayout
from nemodiff_trt.vocabulary import Role


class BlockRow:
    """Holds a block: the last token of the answer as its seed, then masks to fill."""

    __slots__ = ("_block", "_decider", "_mask_token_id", "moves", "num_cached", "role", "sequence", "step_length")

    def __init__(self, sequence: Sequence, num_cached: int, block_length: int, mask_token_id: int, decider: Decider) -> None:
        """Allocate the block.

        Args:
            sequence: with its first token.
            num_cached: tokens of the prompt.
            block_length: seed and masks of a block, 2 to the built maximum.
            mask_token_id: marks the positions to fill.
            decider: of the request.
        """
        self.sequence = sequence
        self.num_cached = num_cached
        self.moves: tuple[tuple[int, int], ...] = ()
        self._mask_token_id = mask_token_id
        self._decider = decider
        self._block = np.empty(block_length, np.int64)

    def fill(self, ids: np.ndarray) -> StepLayout | None:
        ids[:] = self._block
        return None

    def _start_block(self, role: Role) -> None:
        """Begin anew behind the answer; the next run is one of `role` over the block."""
        self._block[0] = self.sequence.tokens[-1]
        self._block[1:] = self._mask_token_id
        self.role = role
        self.step_length = len(self._block)


def emit_verified(sequence: Sequence, verified: Sized[int]) -> tuple[list[int], int]:
    """Append accepted drafts and the verifier's own token behind them.

    Returns:
        The tokens appended, and how many of them are drafts: all but the verifier's own, or the one that replaced a draft.
    """
    emitted = sequence.emit(verified)
    is_own = sequence.was_cut or len(emitted) == len(verified)
    accepted = len(emitted) - is_own
    sequence.accepted_drafts += accepted
    return emitted, accepted

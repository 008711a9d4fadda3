"""Linear self-speculation with a second chance: beside the drafted block, runner-up tokens are verified as leaves of a tree.

Where the block is rejected first, the right token is often the drafter's second choice. A leaf holds it at one position; if the
block is rejected there and the verifier wants the leaf, the leaf is accepted together with the verifier's token behind it. All
of it runs in one causal step of the role `quadratic`, with base weights, so greedy output equals greedy `ar`.
"""

from __future__ import annotations

import numpy as np

from nemodiff_trt.runtime.events import RowStep
from nemodiff_trt.runtime.rows.block_row import emit_verified
from nemodiff_trt.runtime.rows.decider import NO_DRAFTS, Decider, logits_of
from nemodiff_trt.runtime.rows.quadratic_layout import tree_layout
from nemodiff_trt.runtime.rows.row_decoder import RowOutput
from nemodiff_trt.runtime.rows.self_speculation import SelfSpeculationRow
from nemodiff_trt.runtime.sequence import Sequence
from nemodiff_trt.runtime.step_layout import StepLayout
from nemodiff_trt.vocabulary import Role


class TreeSpeculationRow(SelfSpeculationRow):
    """Alternates draft runs over a block and verification runs over the block and its leaves."""

    __slots__ = ("_leaf_offsets", "_leaf_tokens", "_num_leaves")

    def __init__(
        self,
        sequence: Sequence,
        num_cached: int,
        block_length: int,
        mask_token_id: int,
        decider: Decider,
        num_leaves: int,
    ) -> None:
        """Start the first cycle; arguments as of `BlockRow`.

        Args:
            sequence: likewise.
            num_cached: likewise.
            block_length: likewise.
            mask_token_id: likewise.
            decider: likewise.
            num_leaves: positions that get a leaf, 1 to `block_length` - 1.
        """
        self._num_leaves = num_leaves
        # Positions in the block, in order, and the tokens to try there.
        self._leaf_offsets: list[int] = []
        self._leaf_tokens: list[int] = []
        super().__init__(sequence, num_cached, block_length, mask_token_id, decider)

    def fill(self, ids: np.ndarray) -> StepLayout | None:
        if self.role is Role.DRAFT:
            return super().fill(ids)
        ids[: len(self._block)] = self._block
        ids[len(self._block) :] = self._leaf_tokens
        return tree_layout(len(self._block), self._leaf_offsets)

    def _draft_all(self, output: RowOutput) -> RowStep:
        logits, report = logits_of(output), super()._draft_all(output)
        self.moves = ()
        self._leaf_offsets = likely_first_rejections(output.confidence, self._num_leaves)
        self._leaf_tokens = [
            runner_up(logits[offset], int(self._block[offset]), self._mask_token_id) for offset in self._leaf_offsets
        ]
        self.role = Role.QUADRATIC
        self.step_length = len(self._block) + self._num_leaves
        return report

    def _accept(self, output: RowOutput) -> RowStep:
        sequence, drafts = self.sequence, self._block[1:]
        path = self._decider.verify(output, drafts, len(sequence.tokens))
        leaf, drafted = self._accepted_leaf(len(path), path[-1]), drafts.tolist()
        emitted, accepted = emit_verified(sequence, path)
        rows = list(range(len(emitted)))
        if leaf is not None and not sequence.was_cut and sequence.finish_reason is None:
            drafted[len(path) - 1] = path[-1]
            # The leaf belongs where the block was rejected.
            row = len(self._block) + leaf
            self.moves = ((self.num_cached + row, self.num_cached + len(path)),)
            rows.append(row)
            emitted += sequence.emit(self._decider.verify(output.behind(row), NO_DRAFTS, len(sequence.tokens)))
            # What was the verifier's own token is a draft now, that of the leaf.
            accepted += 1
            sequence.accepted_drafts += 1
        self.num_cached += len(emitted)
        if sequence.finish_reason is None:
            self._start_cycle()
        return RowStep(emitted, drafted, accepted, logprobs=self._decider.logprobs(output, rows, emitted))

    def _accepted_leaf(self, offset: int, token: int) -> int | None:
        """Number of the leaf that holds `token` at `offset` of the block, if there is one."""
        if offset not in self._leaf_offsets:
            return None
        leaf = self._leaf_offsets.index(offset)
        return leaf if self._leaf_tokens[leaf] == token else None


def likely_first_rejections(confidence: np.ndarray, num: int) -> list[int]:
    """The `num` offsets of a block at which it is most likely rejected first, in order; never the seed's.

    Args:
        confidence: float32 [S], probability of the drafts; that of the seed does not count.
        num: at most S - 1.
    """
    drafts = confidence[1:].astype(np.float64)
    reached = np.concatenate([[1.0], np.cumprod(drafts)[:-1]])
    order = np.argsort(-reached * (1 - drafts), kind="stable")[:num]
    return sorted((1 + order).tolist())


def runner_up(logits: np.ndarray, best: int, mask_token_id: int) -> int:
    """The most likely token of `logits` float32 [V] that is neither `best` nor the mask; ties go to the lowest id."""
    others = logits.copy()
    others[[best, mask_token_id]] = -np.inf
    return int(others.argmax())

"""Linear self-speculation with a second chance: beside the drafted block, runner-up tokens are verified as leaves of a tree.

Where the block is rejected first, the right token is often the drafter's second choice. A leaf holds it at one position; if the
block is rejected there and the verifier wants the leaf, the leaf is accepted together with the verifier's token behind it. All
of it runs in one causal step of the role `quadratic`, with base weights, so greedy output equals greedy `ar`.
"""

from __future__ import annotations

import numpy as np

from nemodiff_trt.runtime.events import RowStep
from nemodiff_trt.runtime.rows.decider import NO_DRAFTS, Decider, logits_of
from nemodiff_trt.runtime.rows.quadratic_layout import tree_layout
from nemodiff_trt.runtime.rows.row_decoder import RowOutput
from nemodiff_trt.runtime.sequence import Sequence
from nemodiff_trt.runtime.step_layout import StepLayout
from nemodiff_trt.vocabulary import Role


class TreeSpeculationRow:
    """Alternates draft runs over a block and verification runs over the block and its leaves."""

    __slots__ = (
        "_block", "_decider", "_leaf_offsets", "_leaf_tokens", "_mask_token_id", "_num_leaves", "moves", "num_cached", "role",
        "sequence", "step_length",
    )  # fmt: skip

    def __init__(
        self,
        sequence: Sequence,
        num_cached: int,
        block_length: int,
        mask_token_id: int,
        decider: Decider,
        num_leaves: int,
    ) -> None:
        """Start the first cycle.

        Args:
            sequence: with its first token.
            num_cached: tokens of the prompt.
            block_length: seed and drafts of a cycle, 2 to the built maximum.
            mask_token_id: fills the block before it is drafted.
            decider: of the request.
            num_leaves: positions that get a leaf, 1 to `block_length` - 1.
        """
        self.sequence = sequence
        self.num_cached = num_cached
        self.moves: tuple[tuple[int, int], ...] = ()
        self._mask_token_id = mask_token_id
        self._decider = decider
        self._num_leaves = num_leaves
        self._block = np.empty(block_length, np.int64)
        # Positions in the block, in order, and the tokens to try there.
        self._leaf_offsets: list[int] = []
        self._leaf_tokens: list[int] = []
        self._start_cycle()

    def fill(self, ids: np.ndarray) -> StepLayout | None:
        ids[: len(self._block)] = self._block
        if self.role is Role.DRAFT:
            return None
        ids[len(self._block) :] = self._leaf_tokens
        return tree_layout(len(self._block), self._leaf_offsets)

    def absorb(self, output: RowOutput) -> RowStep:
        self.sequence.forward_passes += 1
        if self.role is Role.DRAFT:
            self.sequence.draft_passes += 1
            return self._draft(output)
        self.sequence.cycles += 1
        return self._accept(output)

    def _start_cycle(self) -> None:
        self._block[0] = self.sequence.tokens[-1]
        self._block[1:] = self._mask_token_id
        self.role = Role.DRAFT
        self.step_length = len(self._block)

    def _draft(self, output: RowOutput) -> RowStep:
        logits = logits_of(output)
        self.moves = ()
        self._block[1:] = self._decider.draft(output, len(self.sequence.tokens))
        self._leaf_offsets = likely_first_rejections(output.confidence, self._num_leaves)
        self._leaf_tokens = [
            runner_up(logits[offset], int(self._block[offset]), self._mask_token_id) for offset in self._leaf_offsets
        ]
        self.role = Role.QUADRATIC
        self.step_length = len(self._block) + self._num_leaves
        return RowStep([], drafted=self._block[1:].tolist())

    def _accept(self, output: RowOutput) -> RowStep:
        sequence, drafts = self.sequence, self._block[1:]
        path = self._decider.verify(output, drafts, len(sequence.tokens))
        leaf, drafted = self._accepted_leaf(len(path), path[-1]), drafts.tolist()
        emitted = sequence.emit(path)
        rows = list(range(len(emitted)))
        is_own = sequence.was_cut or len(emitted) == len(path)
        if leaf is not None and not sequence.was_cut and sequence.finish_reason is None:
            drafted[len(path) - 1] = path[-1]
            # The leaf belongs where the block was rejected.
            row = len(self._block) + leaf
            self.moves = ((self.num_cached + row, self.num_cached + len(path)),)
            rows.append(row)
            emitted += sequence.emit(self._decider.verify(output.behind(row), NO_DRAFTS, len(sequence.tokens)))
        accepted = len(emitted) - is_own
        sequence.accepted_drafts += accepted
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

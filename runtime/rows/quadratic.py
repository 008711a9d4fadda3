"""Quadratic self-speculation: one run verifies a block and drafts the next one, for every length at which it may be accepted.

Greedy output equals greedy `ar`, whatever the drafts are. Method: Nemotron-Labs-Diffusion, arXiv 2607.05722, quadratic
self-speculation; the layout of the step is ours (`quadratic_layout`), and the adapter applies to the masks alone.
"""

from __future__ import annotations

import numpy as np

from nemodiff_trt.runtime.events import RowStep
from nemodiff_trt.runtime.rows.acceptance_histogram import AcceptanceHistogram
from nemodiff_trt.runtime.rows.block_row import emit_verified
from nemodiff_trt.runtime.rows.decider import Decider
from nemodiff_trt.runtime.rows.quadratic_layout import group_rows, quadratic_layout
from nemodiff_trt.runtime.rows.row_decoder import RowOutput
from nemodiff_trt.runtime.sequence import Sequence
from nemodiff_trt.runtime.step_layout import StepLayout
from nemodiff_trt.vocabulary import Role


class QuadraticRow:
    """Every run accepts a prefix of the block and leaves with the guesses of the group behind the last accepted head.

    A run without drafts has one head and one group; every other has B heads. Of the guesses of a group, the first is replaced
    by the verifier's own token, which is the next seed.
    """

    __slots__ = (
        "_block_length", "_decider", "_groups", "_heads", "_layouts", "_mask_token_id", "moves", "num_cached", "role",
        "sequence", "step_length",
    )  # fmt: skip

    def __init__(self, sequence: Sequence, num_cached: int, block_length: int, mask_token_id: int, decider: Decider) -> None:
        """Start with the seed alone.

        Args:
            sequence: with its first token.
            num_cached: tokens of the prompt.
            block_length: B, seed and drafts of a run and masks of a group: at least 2.
            mask_token_id: fills the groups.
            decider: of the request.
        """
        self.sequence = sequence
        self.num_cached = num_cached
        self.role = Role.QUADRATIC
        self.moves: tuple[tuple[int, int], ...] = ()
        self._block_length = block_length
        self._mask_token_id = mask_token_id
        self._decider = decider
        # Layouts of this row by heads and groups: a few, each used many times.
        self._layouts: dict[tuple[int, tuple[int, ...]], StepLayout] = {}
        self._heads = np.array([sequence.tokens[-1]])
        self._prepare()

    def fill(self, ids: np.ndarray) -> StepLayout:
        num_heads = len(self._heads)
        ids[:num_heads] = self._heads
        ids[num_heads:] = self._mask_token_id
        key = (num_heads, self._groups)
        if key not in self._layouts:
            self._layouts[key] = quadratic_layout(*key, self._block_length)
        return self._layouts[key]

    def absorb(self, output: RowOutput) -> RowStep:
        sequence = self.sequence
        sequence.forward_passes += 1
        sequence.cycles += 1
        position = len(sequence.tokens)
        drafted = self._heads[1:].tolist()
        verified = self._decider.verify(output, self._heads[1:], position)
        emitted, accepted = emit_verified(sequence, verified)
        # Seed and accepted drafts stay; the last token is the next seed and not cached yet.
        self.num_cached += len(emitted)
        report = RowStep(emitted, drafted, accepted, logprobs=self._decider.logprobs(output, range(len(emitted)), emitted))
        if sequence.finish_reason is None:
            matched = len(verified) - 1
            self._learn(matched)
            self._heads = self._next_heads(output, matched, position)
            self._prepare()
        return report

    def _next_heads(self, output: RowOutput, matched: int, position: int) -> np.ndarray:
        """Seed and drafts of the next run, B of them or the seed alone; `position` is that of the token behind head 0."""
        seed = self.sequence.tokens[-1]
        # A token that the thinking budget put there is none the guesses were made for.
        source = None if self.sequence.was_cut else self._source(matched)
        if source is None:
            return np.array([seed])
        group = group_rows(len(self._heads), self._groups.index(source), self._block_length)
        rows = np.arange(group.start, group.stop)
        guesses = self._decider.guess(output, rows, position + source - group.start)
        # Guesses of an earlier group than that of the last accepted head begin with tokens that are known by now.
        drafts = guesses[matched - source + 1 :]
        # The mask is never the verifier's token: acceptance ends before it.
        heads = np.full(self._block_length, self._mask_token_id)
        heads[0] = seed
        heads[1 : 1 + len(drafts)] = drafts
        return heads

    def _prepare(self) -> None:
        num_heads = len(self._heads)
        self._groups = self._choose_groups()
        self.step_length = num_heads + len(self._groups) * self._block_length

    def _choose_groups(self) -> tuple[int, ...]:
        return tuple(range(len(self._heads)))

    def _source(self, matched: int) -> int | None:
        """The group whose guesses continue the answer after head `matched`."""
        return matched

    def _learn(self, matched: int) -> None:
        """Note how far a run was accepted."""


class PrunedQuadraticRow(QuadraticRow):
    """Drafts only for the `num_groups` most likely lengths of acceptance: B(1 + num_groups) tokens a run instead of B(1 + B).

    After a length it did not draft for, it goes on with what is left of the guesses of the next shorter one, which knew fewer
    tokens; without any, with the seed alone.
    """

    __slots__ = ("_histogram", "_num_groups")

    def __init__(
        self,
        sequence: Sequence,
        num_cached: int,
        block_length: int,
        mask_token_id: int,
        decider: Decider,
        num_groups: int,
        histogram: AcceptanceHistogram | None = None,
    ) -> None:
        """Start with the seed alone; arguments as of `QuadraticRow`.

        Args:
            sequence: likewise.
            num_cached: likewise.
            block_length: likewise.
            mask_token_id: likewise.
            decider: likewise.
            num_groups: 1 to `block_length`.
            histogram: of this block length, to learn from and to teach; None for one of this row's own.
        """
        self._num_groups = num_groups
        self._histogram = histogram or AcceptanceHistogram(block_length)
        super().__init__(sequence, num_cached, block_length, mask_token_id, decider)

    def _choose_groups(self) -> tuple[int, ...]:
        return self._histogram.most_likely(self._num_groups, self._num_known())

    def _source(self, matched: int) -> int | None:
        # B guesses behind a group: those of the first ones may all be known by now.
        usable = [group for group in self._groups if group <= matched and matched - group + 1 < self._block_length]
        return max(usable, default=None)

    def _learn(self, matched: int) -> None:
        num_known = self._num_known()
        # Where drafts were missing and all were accepted, nobody knows how far more of them would have come.
        if matched < num_known - 1 or num_known == self._block_length:
            self._histogram.add(matched)

    def _num_known(self) -> int:
        """Heads that can be accepted: the seed and the drafts there are."""
        return 1 + int((self._heads[1:] != self._mask_token_id).sum())

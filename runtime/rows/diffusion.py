"""Block diffusion: fill a block of masks over several bidirectional runs, then commit it with one causal run.

Method: Nemotron-Labs-Diffusion, arXiv 2607.05722, block-wise denoising with causal commits.
"""

from __future__ import annotations

from nemodiff_trt.runtime.decisions import CommitRule
from nemodiff_trt.runtime.events import RowStep
from nemodiff_trt.runtime.learned_sampler import LearnedSampler
from nemodiff_trt.runtime.rows.block_row import BlockRow
from nemodiff_trt.runtime.rows.decider import NO_DRAFTS, Decider, logits_of
from nemodiff_trt.runtime.rows.mask_filling import fix_masks, fix_scored_masks
from nemodiff_trt.runtime.rows.row_decoder import RowOutput
from nemodiff_trt.runtime.sampling import TokenLogprobs
from nemodiff_trt.runtime.sequence import Sequence
from nemodiff_trt.vocabulary import Role


class DiffusionRow(BlockRow):
    """Denoises a block until it is complete, then commits it.

    Tokens are emitted as soon as no mask is left of them. A block is complete when its last token is emitted, the answer ends
    in it, or the thinking budget cuts it.
    """

    __slots__ = ("_logprobs", "_num_emitted", "_pass", "_rule", "_sampler")

    def __init__(
        self,
        sequence: Sequence,
        num_cached: int,
        block_length: int,
        mask_token_id: int,
        decider: Decider,
        rule: CommitRule,
        sampler: LearnedSampler | None = None,
    ) -> None:
        """Start the first block; arguments as of `BlockRow`, and the `rule` which positions a pass fixes.

        A `sampler` gives the confidence that rule goes by; without it, it is the probability of the guess.
        """
        super().__init__(sequence, num_cached, block_length, mask_token_id, decider)
        self._rule, self._sampler = rule, sampler
        self._start()

    def absorb(self, output: RowOutput) -> RowStep:
        self.sequence.forward_passes += 1
        return self._commit_block(output) if self.role is Role.VERIFY else self._denoise(output)

    def _start(self) -> None:
        self._start_block(Role.DENOISE)
        # Leading tokens of the block that are part of the answer, the seed included, and denoise passes so far.
        self._num_emitted, self._pass = 1, 0
        # Of the positions fixed so far, by the pass that fixed them, where the request asks for them.
        self._logprobs: dict[int, TokenLogprobs] = {}

    def _denoise(self, output: RowOutput) -> RowStep:
        sequence, block = self.sequence, self._block
        sequence.draft_passes += 1
        sequence.cycles += self._pass == 0
        quota = self._rule.quota(self._pass, len(block) - 1)
        position = len(sequence.tokens) - self._num_emitted
        mask, threshold = self._mask_token_id, self._rule.threshold
        if self._sampler is not None and threshold is not None:
            scores = self._sampler.scores(block, logits_of(output))
            committed = fix_scored_masks(block, output.token, scores, mask, threshold)
        else:
            committed = fix_masks(block, output, self._decider, mask, threshold, quota, position)
        self._pass += 1
        offsets, tokens = [offset for offset, _ in committed], [token for _, token in committed]
        self._logprobs.update(zip(offsets, self._decider.logprobs(output, offsets, tokens), strict=False))
        begin = self._num_emitted
        emitted = self._emit_known()
        # Every pass fixes at least one position, so there are at most as many passes as masks.
        is_complete = self._num_emitted == len(block) or self._pass == len(block) - 1
        if sequence.was_cut or is_complete:
            self.role = Role.VERIFY
        known = [self._logprobs[offset] for offset in range(begin, self._num_emitted) if offset in self._logprobs]
        return RowStep(emitted, committed=committed, logprobs=known)

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
        behind = output.behind(self._num_emitted - 1)
        emitted = self.sequence.emit(self._decider.verify(behind, NO_DRAFTS, len(self.sequence.tokens)))
        report = RowStep(emitted, logprobs=self._decider.logprobs(behind, (0,), emitted))
        if self.sequence.finish_reason is None:
            self._start()
        return report

"""A language model of a few tokens with logits that are a pure function of the tokens before, and a worse one that drafts."""

from __future__ import annotations

import numpy as np

from nemodiff_trt.runtime.sampling import (
    Acceptance,
    SamplingOptions,
    SamplingWorkspace,
    TokenChooser,
    accept_coupled,
    draft_for_rejection,
    verify_by_rejection,
)


class ToyModel:
    """`vocab_size` tokens, of which the last is the mask. The successor depends on the two tokens before."""

    def __init__(self, vocab_size: int, draft_error: float = 1.0, seed: int = 0) -> None:
        generator = np.random.default_rng(seed)
        shape = (vocab_size, vocab_size, vocab_size)
        self.workspace = SamplingWorkspace(vocab_size, vocab_size - 1)
        self._logits = generator.normal(0, 1.5, shape).astype(np.float32)
        self._draft_error = (draft_error * generator.normal(0, 1.0, (8, vocab_size))).astype(np.float32)

    def logits(self, tokens: list[int]) -> np.ndarray:
        before = [0, 0, *tokens]
        return self._logits[before[-2], before[-1]]

    def draft_logits(self, tokens: list[int], num_drafts: int) -> np.ndarray:
        """Rows for the next tokens; all but the first are guessed without knowing the one before."""
        rows = [self.logits(tokens), *(self._logits[0].mean(0) for _ in range(num_drafts - 1))]
        return np.stack(rows) + self._draft_error[:num_drafts]

    def chooser(self, options: SamplingOptions, answer: list[int], index: int = 0) -> TokenChooser:
        return TokenChooser(options, self.workspace, prompt=(), answer=answer, index=index)

    def ar(self, options: SamplingOptions, length: int) -> list[int]:
        answer: list[int] = []
        chooser = self.chooser(options, answer)
        while len(answer) < length:
            answer.append(chooser.choose(self.logits(answer), len(answer)))
        return answer

    def speculate(self, options: SamplingOptions, length: int, num_drafts: int = 3) -> list[int]:
        answer: list[int] = []
        chooser = self.chooser(options, answer)
        while len(answer) < length:
            position, guesses = len(answer), self.draft_logits(answer, num_drafts)
            if options.acceptance is Acceptance.COUPLED:
                drafts = chooser.choose_block(guesses, position)
                answer += accept_coupled(chooser, drafts, self._verified(answer, drafts), position)
            else:
                drafts, q = draft_for_rejection(chooser, guesses, position)
                answer += verify_by_rejection(chooser, drafts, q, self._verified(answer, drafts), position)
        return answer[:length]

    def _verified(self, answer: list[int], drafts: np.ndarray) -> np.ndarray:
        known = [*answer, *drafts.tolist()]
        return np.stack([self.logits(known[:end]) for end in range(len(answer), len(known) + 1)])

    def answer_probabilities(self, options: SamplingOptions, length: int) -> dict[tuple[int, ...], float]:
        """Of every answer of `length` tokens under sampled `ar`, by multiplication."""
        result: dict[tuple[int, ...], float] = {(): 1.0}
        for _ in range(length):
            longer: dict[tuple[int, ...], float] = {}
            for tokens, probability in result.items():
                row = self.chooser(options, list(tokens)).probabilities(self.logits(list(tokens)))
                longer |= {(*tokens, token): probability * float(row[token]) for token in range(len(row) - 1)}
            result = longer
        return result

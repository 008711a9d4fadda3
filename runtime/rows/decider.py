"""Which tokens a run gives: those the engine decided, or those sampled from its logits.

Every row asks its decider in the same way, so sampling means the same in all modes. `position` is the place of a token in the
answer, from 0. Rows of a run are counted from 0 to S - 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from nemodiff_trt.runtime.decisions import accept_draft
from nemodiff_trt.runtime.rows.row_decoder import RowOutput
from nemodiff_trt.runtime.sampling import (
    Acceptance,
    TokenChooser,
    TokenLogprobs,
    accept_coupled,
    draft_for_rejection,
    token_confidence,
    token_logprobs,
    verify_by_rejection,
)

# What a run that only goes on verifies.
NO_DRAFTS = np.empty(0, np.int64)


class Decider(Protocol):
    """Decides for one request."""

    def verify(self, output: RowOutput, drafts: np.ndarray, position: int) -> list[int]:
        """Tokens to emit after a causal run: the drafts accepted, and the verifier's own behind them.

        Args:
            output: row n decides the token at `position` + n, given the drafts before it.
            drafts: int64 [N], fewer than the run has rows; none for a run that only goes on.
            position: of the first draft.
        """
        ...

    def draft(self, output: RowOutput, position: int) -> np.ndarray:
        """Guesses int64 [S-1] of a bidirectional run over a seed and masks; `position` is that of the first mask."""
        ...

    def guess(self, output: RowOutput, rows: np.ndarray, position: int) -> np.ndarray:
        """Guesses int64 [N] of the given rows [N]; `position` is that of the token of row 0."""
        ...

    def confidence(self, output: RowOutput, rows: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """Probabilities float32 [N] of what `guess` gave."""
        ...

    def logprobs(self, output: RowOutput, rows: Sequence[int], tokens: Sequence[int]) -> list[TokenLogprobs]:
        """Of emitted tokens and the rows that decided them; empty where the request does not ask for them."""
        ...


class GreedyDecider:
    """Takes the engine's own tokens. Has no state: all greedy requests may share one."""

    __slots__ = ()

    def verify(self, output: RowOutput, drafts: np.ndarray, position: int) -> list[int]:  # noqa: ARG002 - see Decider
        matched = accept_draft(drafts, output.token)
        tokens: list[int] = output.token[: matched + 1].tolist()
        return tokens

    def draft(self, output: RowOutput, position: int) -> np.ndarray:  # noqa: ARG002 - see Decider
        return output.token[1:]

    def guess(self, output: RowOutput, rows: np.ndarray, position: int) -> np.ndarray:  # noqa: ARG002 - see Decider
        guesses: np.ndarray = output.token[rows]
        return guesses

    def confidence(self, output: RowOutput, rows: np.ndarray, tokens: np.ndarray) -> np.ndarray:  # noqa: ARG002 - see Decider
        confidence: np.ndarray = output.confidence[rows]
        return confidence

    def logprobs(self, output: RowOutput, rows: Sequence[int], tokens: Sequence[int]) -> list[TokenLogprobs]:  # noqa: ARG002
        return []


class SampledDecider:
    """Chooses from logits, as the sampling options of the request say."""

    __slots__ = ("_chooser", "_draft_probabilities", "_mask_token_id")

    def __init__(self, chooser: TokenChooser, mask_token_id: int) -> None:
        self._chooser = chooser
        self._mask_token_id = mask_token_id
        # Of the drafts that are to be verified by rejection.
        self._draft_probabilities: np.ndarray | None = None

    def verify(self, output: RowOutput, drafts: np.ndarray, position: int) -> list[int]:
        logits = logits_of(output)[: len(drafts) + 1]
        probabilities, self._draft_probabilities = self._draft_probabilities, None
        if probabilities is None:
            return accept_coupled(self._chooser, drafts, logits, position)
        return verify_by_rejection(self._chooser, drafts, probabilities, logits, position)

    def draft(self, output: RowOutput, position: int) -> np.ndarray:
        logits = logits_of(output)[1:]
        if self._chooser.options.acceptance is Acceptance.COUPLED or self._chooser.options.is_greedy:
            return self._chooser.choose_block(logits, position)
        drafts, self._draft_probabilities = draft_for_rejection(self._chooser, logits, position)
        return drafts

    def guess(self, output: RowOutput, rows: np.ndarray, position: int) -> np.ndarray:
        return self._chooser.choose_block(logits_of(output), position, rows)

    def confidence(self, output: RowOutput, rows: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        return token_confidence(logits_of(output), tokens, rows)

    def logprobs(self, output: RowOutput, rows: Sequence[int], tokens: Sequence[int]) -> list[TokenLogprobs]:
        num_top = self._chooser.options.logprobs
        if num_top is None:
            return []
        logits = logits_of(output)
        return [
            token_logprobs(logits[row], token, num_top, self._mask_token_id) for row, token in zip(rows, tokens, strict=True)
        ]


def logits_of(output: RowOutput) -> np.ndarray:
    """Logits float32 [S,V] of a run that has them."""
    if output.logits is None:
        raise RuntimeError("a request that samples runs on engines without logits, which submitting it should have refused")
    return output.logits

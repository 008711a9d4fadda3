"""One row of a batch while it is decoded: what was emitted, when it ends, how many engine runs it took.

Every mode appends tokens through `Sequence.emit`, so end of sequence, length limits and the thinking budget mean the same in
all of them.
"""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence as Sized
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from nemodiff_trt.errors import InvalidInputError

_NEVER = -1


class FinishReason(StrEnum):
    """Why an answer ended: EOS token, stop string, token or context limit, the consumer no longer wants it, or time is up."""

    EOS = "eos"
    STOP = "stop"
    LENGTH = "length"
    CANCELLED = "cancelled"
    DEADLINE = "deadline"


@dataclass(frozen=True, slots=True)
class ThinkingBudget:
    """If none of the first `max_tokens` emitted tokens is `end_token_id`, the next one is replaced by it."""

    max_tokens: int
    end_token_id: int


class Sequence:
    """Prompt and answer of one row.

    `tokens` is the answer so far, its last token not yet in the cache. `forward_passes` counts the engine runs after prefill
    that decoded it, `draft_passes` those that denoised or drafted, `cycles` its blocks or speculation cycles,
    `accepted_drafts` the drafted tokens that entered the answer, `reused_tokens` those of the prompt whose keys and values
    were copied from another row, `step_tokens` the tokens of its row in all runs counted as `forward_passes`.
    """

    __slots__ = (
        "_budget_end", "_end_think", "_eos", "_limit", "accepted_drafts", "cycles", "draft_passes", "finish_reason",
        "forward_passes", "prefill_passes", "prompt", "reused_tokens", "step_tokens", "tokens",
        "was_cut",
    )  # fmt: skip

    def __init__(
        self,
        prompt: Sized[int],
        max_new_tokens: int,
        max_seq_len: int,
        eos_token_id: int | None,
        thinking: ThinkingBudget | None = None,
    ) -> None:
        """Start an answer.

        Args:
            prompt: token ids, at least one and fewer than `max_seq_len`.
            max_new_tokens: limit of the answer, at least one.
            max_seq_len: limit of prompt and answer together.
            eos_token_id: ends the answer and stays in it; None to go on.
            thinking: budget of tokens before `</think>`.

        Raises:
            InvalidInputError: the prompt is empty or leaves no room, or `max_new_tokens` is not positive.
        """
        check_prompt_length(len(prompt), max_seq_len)
        if max_new_tokens < 1:
            raise InvalidInputError("max_new_tokens", max_new_tokens, "an integer of at least 1")
        self.prompt = np.asarray(prompt, np.int64)
        self.tokens: list[int] = []
        self.finish_reason: FinishReason | None = None
        self.was_cut = False
        self.prefill_passes = self.forward_passes = self.draft_passes = self.cycles = self.accepted_drafts = 0
        self.reused_tokens = self.step_tokens = 0
        self._limit = min(max_new_tokens, max_seq_len - len(prompt))
        self._eos = _NEVER if eos_token_id is None else eos_token_id
        self._end_think = _NEVER if thinking is None else thinking.end_token_id
        self._budget_end = _NEVER if thinking is None else thinking.max_tokens

    def emit(self, candidates: Iterable[int]) -> list[int]:
        """Append tokens until the answer ends or the thinking budget replaces one of them.

        Sets `was_cut` when a token was replaced: it is then the last one appended, and what followed it does not hold.

        Returns:
            The tokens appended.
        """
        tokens = self.tokens
        start = len(tokens)
        self.was_cut = False
        for token in candidates:
            if len(tokens) == self._budget_end:
                self.was_cut = token != self._end_think
                token = self._end_think
            tokens.append(token)
            if token == self._end_think:
                self._budget_end = _NEVER
            if token == self._eos:
                self.finish_reason = FinishReason.EOS
            elif len(tokens) == self._limit:
                self.finish_reason = FinishReason.LENGTH
            if self.was_cut or self.finish_reason is not None:
                break
        return tokens[start:]

    def finish(self, reason: FinishReason, num_tokens: int | None = None) -> None:
        """End the answer from outside a decoding loop, between two of its steps.

        Args:
            reason: overrides the reason the loop may have set.
            num_tokens: keep only so many tokens of the answer.
        """
        if num_tokens is not None:
            del self.tokens[num_tokens:]
        self.finish_reason = reason

    @property
    def num_cacheable(self) -> int:
        """Tokens of prompt and answer that may be in the cache: all but the last."""
        return len(self.prompt) + max(len(self.tokens) - 1, 0)


def check_prompt_length(num_tokens: int, max_seq_len: int, field: str = "prompt") -> None:
    """Refuse a prompt that is empty or leaves no room for one new token."""
    if not 1 <= num_tokens < max_seq_len:
        raise InvalidInputError(field, f"{num_tokens} tokens", f"1 to {max_seq_len - 1} tokens (max_seq_len {max_seq_len})")

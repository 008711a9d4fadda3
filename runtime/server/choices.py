"""One answer on its way to a client: text split into thought and answer, log-probabilities, and why it ended."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from nemodiff_trt.runtime.answer import GenerationResult, StreamEvent
from nemodiff_trt.runtime.sampling import TokenLogprobs
from nemodiff_trt.runtime.sequence import FinishReason
from nemodiff_trt.runtime.stats import GenerationStats
from nemodiff_trt.tokenizer import Tokenizer

# What the OpenAI API knows. The exact reason is in the field `nemodiff`.
FINISH_REASONS = {
    FinishReason.EOS: "stop",
    FinishReason.STOP: "stop",
    FinishReason.LENGTH: "length",
    FinishReason.DEADLINE: "length",
    FinishReason.CANCELLED: "stop",
}


@dataclass(slots=True)
class Piece:
    """What one engine run, or several, added to an answer. `token_ids` is None where nobody asked for them."""

    content: str
    reasoning: str = ""
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    result: GenerationResult | None = None
    token_ids: tuple[int, ...] | None = None

    @property
    def is_empty(self) -> bool:
        return not (self.content or self.reasoning or self.logprobs or self.result or self.token_ids)


class Choice:
    """Follows the events of one answer."""

    __slots__ = ("_cut", "_end_think", "_keeps_ids", "_num_characters", "_thought", "_tokenizer", "reasoning_tokens")

    def __init__(self, tokenizer: Tokenizer, is_thinking: bool, keeps_ids: bool) -> None:
        """`is_thinking`: the prompt opened a think section, so the answer begins inside it. `keeps_ids`: of its tokens."""
        self._tokenizer = tokenizer
        self._keeps_ids = keeps_ids
        self._end_think = tokenizer.end_think_token_id
        # Tokens of the open think section; characters of the answer so far; where the thought ends in them and what follows
        # begins, once the section is closed.
        self._thought: list[int] | None = [] if is_thinking and self._end_think is not None else None
        self._num_characters = 0
        self._cut: tuple[int, int] | None = None if self._thought is not None else (0, 0)
        self.reasoning_tokens = 0

    def push(self, event: StreamEvent) -> Piece:
        """Take in one engine run."""
        reasoning, content = self._split(event.text, event.token_ids)
        ids = event.token_ids if self._keeps_ids else None
        return Piece(content, reasoning, list(event.step.logprobs), event.result, ids)

    def whole(self, result: GenerationResult) -> Piece:
        """A finished answer, of which nothing was pushed."""
        reasoning, content = self._split(result.text, result.token_ids)
        return Piece(content, reasoning, list(result.logprobs), result, result.token_ids if self._keeps_ids else None)

    def _split(self, text: str, token_ids: tuple[int, ...]) -> tuple[str, str]:
        """Text runs behind the tokens where characters are held back, so it is cut by its length."""
        if self._thought is not None:
            self._think(self._thought, token_ids)
        begin, self._num_characters = self._num_characters, self._num_characters + len(text)
        if self._cut is None:
            return text, ""
        end_of_thought, begin_of_rest = (max(place - begin, 0) for place in self._cut)
        return text[:end_of_thought], text[begin_of_rest:]

    def _think(self, thought: list[int], token_ids: tuple[int, ...]) -> None:
        for token in token_ids:
            thought.append(token)
            self.reasoning_tokens += 1
            if token == self._end_think:
                decode = self._tokenizer.decode
                # The closing tag itself is part of neither.
                self._cut, self._thought = (len(decode(thought[:-1])), len(decode(thought))), None
                return


def usage_of(results: list[GenerationResult], n: int, reasoning_tokens: int) -> dict[str, Any]:
    """Token counts of all answers of a request; a prompt counts once, however often it is answered."""
    prompt_tokens = sum(result.stats.prompt_tokens for result in results[::n])
    completion_tokens = sum(result.stats.new_tokens for result in results)
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "prompt_tokens_details": {"cached_tokens": sum(result.stats.reused_tokens for result in results[::n])},
        "completion_tokens_details": {"reasoning_tokens": reasoning_tokens},
    }


def details_of(result: GenerationResult) -> dict[str, Any]:
    """The field `nemodiff` of a finished answer: how it was written."""
    stats: GenerationStats = result.stats
    return {
        "mode": str(result.mode),
        "finish_reason": str(result.finish_reason),
        "forward_passes": stats.forward_passes,
        "prefill_passes": stats.prefill_passes,
        "tokens_per_forward": stats.tokens_per_forward,
        "mean_accepted": stats.mean_accepted,
        "queue_ms": stats.queue_ms,
        "prefill_ms": stats.prefill_ms,
        "decode_ms": stats.decode_ms,
        "tokens_per_second": stats.tokens_per_second,
    }

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
    """What one engine run, or several, added to an answer."""

    content: str
    reasoning: str = ""
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    result: GenerationResult | None = None

    @property
    def is_empty(self) -> bool:
        return not (self.content or self.reasoning or self.logprobs or self.result)


class Choice:
    """Follows the events of one answer."""

    __slots__ = ("_end_think", "_num_characters", "_num_reasoning", "_thought", "_tokenizer", "reasoning_tokens")

    def __init__(self, tokenizer: Tokenizer, is_thinking: bool) -> None:
        """`is_thinking`: the prompt opened a think section, so the answer begins inside it."""
        self._tokenizer = tokenizer
        self._end_think = tokenizer.end_think_token_id
        # Tokens of the open think section; characters of the answer so far, and how many of them are thought once it is closed.
        self._thought: list[int] | None = [] if is_thinking and self._end_think is not None else None
        self._num_characters = 0
        self._num_reasoning: int | None = None if self._thought is not None else 0
        self.reasoning_tokens = 0

    def push(self, event: StreamEvent) -> Piece:
        """Take in one engine run."""
        reasoning, content = self._split(event.text, event.token_ids)
        return Piece(content, reasoning, list(event.step.logprobs), event.result)

    def whole(self, result: GenerationResult) -> Piece:
        """A finished answer, of which nothing was pushed."""
        reasoning, content = self._split(result.text, result.token_ids)
        return Piece(content, reasoning, list(result.logprobs), result)

    def _split(self, text: str, token_ids: tuple[int, ...]) -> tuple[str, str]:
        """Text runs behind the tokens where characters are held back, so it is cut by its length."""
        if self._thought is not None:
            for place, token in enumerate(token_ids):
                self.reasoning_tokens += 1
                if token == self._end_think:
                    self._thought += token_ids[:place]
                    self._num_reasoning, self._thought = len(self._tokenizer.decode(self._thought)), None
                    break
            else:
                self._thought += token_ids
        begin, self._num_characters = self._num_characters, self._num_characters + len(text)
        if self._num_reasoning is None:
            return text, ""
        cut = max(self._num_reasoning - begin, 0)
        return text[:cut], text[cut:]


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

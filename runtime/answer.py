"""One answer in the making: tokens, text, stop strings and times; and what a caller gets of it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from nemodiff_trt.runtime.events import RowStep
from nemodiff_trt.runtime.sampling import TokenLogprobs
from nemodiff_trt.runtime.sequence import FinishReason, Sequence
from nemodiff_trt.runtime.stats import GenerationStats, RequestTimes
from nemodiff_trt.runtime.streaming import TextStream
from nemodiff_trt.tokenizer import Tokenizer
from nemodiff_trt.vocabulary import Mode, Role


@dataclass(frozen=True, slots=True)
class GenerationResult:
    """A finished answer.

    `text` leaves out special tokens and everything from a stop string on. `token_ids` keep the end-of-sequence token, and in
    the case of a stop string end with the token that completed it. `prompt` is the text that was encoded: of a chat, the
    rendered template. `logprobs` has an entry for every token if the request asked for them.
    """

    prompt: str
    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    mode: Mode
    stats: GenerationStats
    logprobs: tuple[TokenLogprobs, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """As plain values, ready for JSON."""
        return dataclasses.asdict(self) | {"finish_reason": str(self.finish_reason), "mode": str(self.mode)}


@dataclass(frozen=True, slots=True)
class StreamEvent:
    """One engine run of a streamed answer.

    `text` can be shown at once; all of them joined are the result's text. `token_ids` were added to the answer by this run,
    `step` tells what was drafted, accepted and committed. The last event carries the `result`.
    """

    role: Role
    text: str
    token_ids: tuple[int, ...]
    step: RowStep
    result: GenerationResult | None = None


class Answer:
    """Follows one sequence through its decoding, ends it at a stop string, and keeps its text and times."""

    __slots__ = (
        "_admitted_s", "_end", "_first", "_logprobs", "_mode", "_parts", "_stream", "_submitted_s", "_tokenizer", "last_text",
        "prompt", "sequence",
    )  # fmt: skip

    def __init__(
        self, prompt: str, sequence: Sequence, mode: Mode, tokenizer: Tokenizer, stream: TextStream | None, now_s: float
    ) -> None:
        """Without a `stream` the text is decoded once, at the end; stop strings need one."""
        self.prompt = prompt
        self.sequence = sequence
        # Text that was held back when the answer was ended from outside.
        self.last_text = ""
        self._mode = mode
        self._tokenizer = tokenizer
        self._stream = stream
        self._parts: list[str] = []
        self._logprobs: list[TokenLogprobs] = []
        self._submitted_s = now_s
        self._admitted_s: float | None = None
        # Readings of (clock, engine time) in seconds, at the first token and at the end.
        self._first: tuple[float, float] | None = None
        self._end: tuple[float, float] | None = None

    def admit(self, now_s: float) -> None:
        """Note when the request got its slot."""
        self._admitted_s = now_s

    def advance(self, step: RowStep, clock_s: float, engine_s: float) -> str:
        """Take in one engine run: cut at a stop string, note the time. Returns the text that is new."""
        text = "" if self._stream is None else self._advance_text(self._stream, step)
        self._logprobs += step.logprobs
        self._end = (clock_s, engine_s)
        if self._first is None and self.sequence.tokens:
            self._first = self._end
        return text

    def _advance_text(self, stream: TextStream, step: RowStep) -> str:
        sequence = self.sequence
        num_before = len(sequence.tokens) - len(step.emitted)
        text = ""
        for index, token in enumerate(step.emitted):
            text += stream.push(token)
            if stream.is_stopped:
                _cut(sequence, step, num_before, index + 1)
                break
        else:
            if sequence.finish_reason is not None:
                text += stream.flush()
                # Bytes that never became a character may complete a stop string.
                sequence.finish_reason = FinishReason.STOP if stream.is_stopped else sequence.finish_reason
        self._parts.append(text)
        return text

    def end(self, clock_s: float, engine_s: float) -> None:
        """Take in that the sequence was ended from outside: what was held back is text now."""
        self._end = (clock_s, engine_s)
        if self._stream is not None:
            self.last_text = self._stream.flush()
            self._parts.append(self.last_text)

    def result(self) -> GenerationResult:
        """Of a finished sequence.

        Raises:
            RuntimeError: it is not finished.
        """
        sequence = self.sequence
        if sequence.finish_reason is None or self._end is None:
            raise RuntimeError("the answer is not finished")
        text = "".join(self._parts) if self._stream else self._tokenizer.decode(sequence.tokens)
        end_s, end_engine_s = self._end
        first_s, first_engine_s = self._first or self._end
        # One that was ended while it waited never got a slot.
        admitted_s = self._admitted_s if self._admitted_s is not None else end_s
        times = RequestTimes(
            queue_s=admitted_s - self._submitted_s,
            prefill_s=first_s - admitted_s,
            decode_s=end_s - first_s,
            engine_s=end_engine_s - first_engine_s,
        )
        stats = GenerationStats.of(sequence, self._mode, times)
        tokens, logprobs = tuple(sequence.tokens), tuple(self._logprobs)
        return GenerationResult(self.prompt, text, tokens, sequence.finish_reason, self._mode, stats, logprobs)


def _cut(sequence: Sequence, step: RowStep, num_before: int, num_kept: int) -> None:
    """End the answer `num_kept` tokens into what `step` emitted."""
    sequence.finish(FinishReason.STOP, num_before + num_kept)
    del step.emitted[num_kept:], step.logprobs[num_kept:]
    num_dropped = max(step.accepted - num_kept, 0)
    step.accepted -= num_dropped
    sequence.accepted_drafts -= num_dropped

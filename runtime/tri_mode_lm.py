"""`TriModeLM`: text in, text out, over any session."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Generator, Iterator
from collections.abc import Sequence as Sized
from pathlib import Path
from typing import Any

from nemodiff_trt.bundle import Bundle
from nemodiff_trt.errors import InvalidInputError
from nemodiff_trt.runtime.answer import Answer, GenerationResult, StreamEvent
from nemodiff_trt.runtime.decode_autoregressive import decode_autoregressive
from nemodiff_trt.runtime.decode_diffusion import decode_diffusion
from nemodiff_trt.runtime.decode_speculative import decode_speculative
from nemodiff_trt.runtime.events import DecodeStep
from nemodiff_trt.runtime.kv_cache import KVCache
from nemodiff_trt.runtime.open_session import open_session
from nemodiff_trt.runtime.options import GenerationOptions
from nemodiff_trt.runtime.prefill import prefill
from nemodiff_trt.runtime.prompts import Prompt, encode_prompt, is_single_prompt
from nemodiff_trt.runtime.sequence import Sequence, ThinkingBudget, check_prompt_length
from nemodiff_trt.runtime.session import Session
from nemodiff_trt.runtime.stats import TimedSession
from nemodiff_trt.runtime.streaming import TextStream
from nemodiff_trt.tokenizer import Tokenizer
from nemodiff_trt.vocabulary import Mode, Role


class TriModeLM:
    """A model that answers prompts in three modes. Not safe for use from several threads at once."""

    def __init__(self, session: Session, tokenizer: Tokenizer) -> None:
        """Use `from_bundle`, or bring a session.

        Raises:
            InvalidInputError: the tokenizer knows ids that the model does not.
        """
        if tokenizer.vocab_size > session.model.vocab_size:
            raise InvalidInputError("tokenizer", f"{tokenizer.vocab_size} ids", f"at most {session.model.vocab_size}")
        self.session = session
        self.tokenizer = tokenizer
        self._spare_cache: KVCache[Any] | None = None

    @classmethod
    def from_bundle(cls, path: str | Path, verify: bool = True, num_threads: int | None = None) -> TriModeLM:
        """Open the bundle at `path` and its engines.

        Args:
            path: folder that `build_engines` wrote.
            verify: compare the checksum of every file first.
            num_threads: CPU threads a step may use; None for all CPUs of the process.

        Raises:
            BundleError: a file is missing, altered or unknown, or nothing here runs the bundle's target.
            InvalidInputError: `num_threads` is not positive.
        """
        bundle = Bundle.open(path, verify=verify)
        return cls(open_session(bundle, num_threads), Tokenizer.from_dir(bundle.tokenizer_dir))

    def generate(
        self, prompts: Prompt | Sized[Prompt], options: GenerationOptions | None = None, **changes: Any
    ) -> list[GenerationResult]:
        """Answer one prompt or several, in the order given.

        Args:
            prompts: a text, a chat (list of messages with role and content), token ids, or a list of these.
            options: how; the defaults of `GenerationOptions` otherwise.
            **changes: fields of `GenerationOptions` to change, such as `mode="ar"`.

        Raises:
            InvalidInputError: an option or one of the prompts is not usable; nothing has run then.
        """
        listed: Any = [prompts] if is_single_prompt(prompts) else prompts
        return [result for _, result in sorted(self.complete(listed, options, **changes), key=lambda item: item[0])]

    def complete(
        self, prompts: Sized[Prompt], options: GenerationOptions | None = None, **changes: Any
    ) -> Iterator[tuple[int, GenerationResult]]:
        """Like `generate` for a list of prompts, but gives (index, result) as soon as its batch is finished.

        Batches hold up to `limits.max_batch_size` prompts of similar length, so results do not come in order.
        """
        chosen = self._options(options, changes)
        encoded = [self._encode(prompt, f"prompts[{index}]", chosen) for index, prompt in enumerate(prompts)]
        by_length = sorted(range(len(encoded)), key=lambda index: len(encoded[index][1]))
        return self._complete(encoded, by_length, chosen)

    def stream(
        self, prompt: Prompt, options: GenerationOptions | None = None, **changes: Any
    ) -> Generator[StreamEvent, None, None]:
        """Answer one prompt, one event for each engine run; arguments and errors as for `generate`.

        Closing the iterator stops the decoding.
        """
        chosen = self._options(options, changes)
        return self._stream(*self._encode(prompt, "prompt", chosen), chosen)

    def _complete(
        self, encoded: list[tuple[str, list[int]]], order: list[int], options: GenerationOptions
    ) -> Iterator[tuple[int, GenerationResult]]:
        size = self.session.limits.max_batch_size
        for start in range(0, len(order), size):
            indices = order[start : start + size]
            answers = [self._answer(*encoded[index], options, bool(options.stop)) for index in indices]
            begin_s = time.perf_counter()
            for _ in self._decode(answers, options):
                pass
            for index, answer in zip(indices, answers, strict=True):
                yield index, answer.result(options.mode, begin_s)

    def _stream(self, text: str, token_ids: list[int], options: GenerationOptions) -> Generator[StreamEvent, None, None]:
        answer = self._answer(text, token_ids, options, True)
        begin_s = time.perf_counter()
        for step, texts in self._decode([answer], options):
            # A batch of one has one report a step.
            row_step, is_last = step.rows[0], answer.sequence.finish_reason is not None
            result = answer.result(options.mode, begin_s) if is_last else None
            yield StreamEvent(step.role, texts[0], tuple(row_step.emitted), row_step, result)

    def _decode(self, answers: list[Answer], options: GenerationOptions) -> Iterator[tuple[DecodeStep, list[str]]]:
        """Run one batch to its end; gives every step with the new text of each of its reports."""
        session = TimedSession(self.session)
        sequences = [answer.sequence for answer in answers]
        cache = self._take_cache(len(answers))
        try:
            for step in _all_steps(session, cache, sequences, options):
                now_s = time.perf_counter()
                if step.role is Role.PREFILL:
                    for answer in answers:
                        answer.start_decoding(now_s, session.engine_s)
                yield step, [answers[row.row].advance(row, now_s, session.engine_s) for row in step.rows]
        finally:
            self._spare_cache = cache

    def _take_cache(self, batch_size: int) -> KVCache[Any]:
        """The cache of the last batch if it fits and is not in use: allocating one may cost more than a short answer."""
        cache, self._spare_cache = self._spare_cache, None
        if cache is not None and cache.batch_size == batch_size:
            return cache
        # Dropped before the next one is made: a device may not hold both.
        del cache
        return self.session.create_cache(batch_size)

    def _options(self, options: GenerationOptions | None, changes: dict[str, Any]) -> GenerationOptions:
        known = {field.name for field in dataclasses.fields(GenerationOptions)}
        for name in changes.keys() - known:
            raise InvalidInputError(name, changes[name], f"only the options {', '.join(sorted(known))}")
        chosen = dataclasses.replace(options or GenerationOptions(), **changes)
        chosen.check_for(self.session.limits, self.session.roles)
        if chosen.max_thinking_tokens is not None and self.tokenizer.end_think_token_id is None:
            raise InvalidInputError("max_thinking_tokens", chosen.max_thinking_tokens, "nothing: there is no </think> token")
        return chosen

    def _encode(self, prompt: Prompt, field: str, options: GenerationOptions) -> tuple[str, list[int]]:
        text, token_ids = encode_prompt(prompt, field, self.tokenizer, self.session.model, options.enable_thinking)
        check_prompt_length(len(token_ids), self.session.limits.max_seq_len, field)
        return text, token_ids

    def _answer(self, text: str, token_ids: list[int], options: GenerationOptions, has_stream: bool) -> Answer:
        eos_token_id = self.session.model.eos_token_id
        end_think, thinking = self.tokenizer.end_think_token_id, None
        if options.max_thinking_tokens is not None and end_think is not None:
            thinking = ThinkingBudget(options.max_thinking_tokens, end_think)
        sequence = Sequence(
            token_ids,
            options.max_new_tokens,
            self.session.limits.max_seq_len,
            None if options.ignore_eos else eos_token_id,
            thinking,
        )
        return Answer(text, sequence, self.tokenizer, TextStream(self.tokenizer, options.stop) if has_stream else None)


def _all_steps(
    session: Session, cache: KVCache[Any], sequences: list[Sequence], options: GenerationOptions
) -> Iterator[DecodeStep]:
    """Prefill, then the loop of the mode."""
    yield from prefill(session, cache, sequences)
    block_length = options.block_length or session.limits.block_length
    if options.mode is Mode.AR:
        yield from decode_autoregressive(session, cache, sequences)
    elif options.mode is Mode.DIFFUSION:
        yield from decode_diffusion(session, cache, sequences, block_length, options.commit_rule())
    else:
        yield from decode_speculative(session, cache, sequences, block_length, options.threshold or 0.0)

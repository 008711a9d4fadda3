"""`TriModeLM`: text in, text out, over any session."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterator
from collections.abc import Sequence as Sized
from pathlib import Path
from typing import Any

from nemodiff_trt.bundle import Bundle
from nemodiff_trt.errors import InvalidInputError
from nemodiff_trt.runtime.answer import GenerationResult, StreamEvent
from nemodiff_trt.runtime.engine import EngineOptions, TriModeEngine
from nemodiff_trt.runtime.learned_sampler import LearnedSampler
from nemodiff_trt.runtime.open_session import open_session
from nemodiff_trt.runtime.options import GenerationOptions
from nemodiff_trt.runtime.planner import Policy, open_policy
from nemodiff_trt.runtime.prompts import Prompt, is_single_prompt
from nemodiff_trt.runtime.session import Session
from nemodiff_trt.tokenizer import Tokenizer


class TriModeLM:
    """A model that answers prompts in three modes. Not safe for use from several threads at once."""

    def __init__(
        self,
        session: Session,
        tokenizer: Tokenizer,
        options: EngineOptions | None = None,
        policy: Policy | None = None,
        sampler: LearnedSampler | None = None,
    ) -> None:
        """Use `from_bundle`, or bring a session; and a `policy` for mode `auto`, a `sampler` for requests that ask for it.

        Raises:
            InvalidInputError: the tokenizer knows ids that the model does not, or `options` exceed what was built.
        """
        self.session = session
        self.tokenizer = tokenizer
        self.engine = TriModeEngine(session, tokenizer, options, policy=policy, sampler=sampler)
        # Events of requests whose consumer has not asked for them yet.
        self._events: dict[int, deque[StreamEvent]] = {}

    @classmethod
    def from_bundle(
        cls,
        path: str | Path,
        verify: bool = True,
        num_threads: int | None = None,
        options: EngineOptions | None = None,
        sampler: str | Path | None = None,
    ) -> TriModeLM:
        """Open the bundle at `path` and its engines; and the step times beside it, if `nemodiff calibrate` measured them.

        Args:
            path: folder that `build_engines` wrote.
            verify: compare the checksum of every file first.
            num_threads: CPU threads a step may use; None for all CPUs of the process.
            options: limits of the engine loop.
            sampler: folder of a learned sampler.

        Raises:
            BundleError: a file is missing, altered or unknown, or nothing here runs the bundle's target.
            InvalidInputError: `num_threads` is not positive, `options` exceed what was built, or the sampler is damaged
                or of another vocabulary.
        """
        bundle = Bundle.open(path, verify=verify)
        session = open_session(bundle, num_threads)
        policy = open_policy(bundle.path, session)
        learned = None if sampler is None else LearnedSampler.open(sampler)
        return cls(session, Tokenizer.from_dir(bundle.tokenizer_dir), options, policy, learned)

    def generate(
        self, prompts: Prompt | Sized[Prompt], options: GenerationOptions | None = None, *, n: int = 1, **changes: Any
    ) -> list[GenerationResult]:
        """Answer one prompt or several, in the order given.

        Args:
            prompts: a text, a chat (list of messages with role and content), token ids, or a list of these.
            options: how; the defaults of `GenerationOptions` otherwise.
            n: answers to each prompt, one after the other in the result; without sampling they are all the same.
            **changes: fields of `GenerationOptions` or of its sampling options to change: `mode="ar"`, `temperature=0.7`.

        Raises:
            InvalidInputError: an option or one of the prompts is not usable; nothing has run then.
        """
        listed: Any = [prompts] if is_single_prompt(prompts) else prompts
        return [result for _, result in sorted(self.complete(listed, options, n=n, **changes), key=lambda item: item[0])]

    def complete(
        self, prompts: Sized[Prompt], options: GenerationOptions | None = None, *, n: int = 1, **changes: Any
    ) -> Iterator[tuple[int, GenerationResult]]:
        """Like `generate` for a list of prompts, but gives (index, result) as soon as its batch is finished.

        As many are decoded at a time as the engine has slots. Shorter prompts start first, so results do not come in order.
        Leaving the iterator stops the rest.
        """
        if n < 1:
            raise InvalidInputError("n", n, "an integer of at least 1")
        chosen = self._options(options, changes)
        checked = [self.engine.check(prompt, chosen, f"prompts[{index}]") for index, prompt in enumerate(prompts)]
        return self._complete(checked, chosen, n)

    def stream(
        self, prompt: Prompt, options: GenerationOptions | None = None, **changes: Any
    ) -> Generator[StreamEvent, None, None]:
        """Answer one prompt, one event for each engine run; arguments and errors as for `generate`.

        Closing the iterator stops the decoding.
        """
        chosen = self._options(options, changes)
        return self._stream(self.engine.check(prompt, chosen), chosen)

    def _complete(
        self, checked: list[tuple[str, list[int]]], options: GenerationOptions, n: int
    ) -> Iterator[tuple[int, GenerationResult]]:
        by_length = sorted(range(len(checked)), key=lambda place: len(checked[place][1]))
        indices = {
            self.engine.submit_checked(checked[place], options, stream_text=False, index=index): place * n + index
            for place in by_length
            for index in range(n)
        }
        self._events.update((number, deque()) for number in indices)
        try:
            while indices:
                self._advance()
                for number in [number for number in indices if self._events[number]]:
                    result = self._events[number].pop().result
                    self._events[number].clear()
                    if result is not None:
                        del self._events[number]
                        yield indices.pop(number), result
        finally:
            self._abandon(*indices)

    def _stream(self, checked: tuple[str, list[int]], options: GenerationOptions) -> Generator[StreamEvent, None, None]:
        number = self.engine.submit_checked(checked, options)
        events = self._events[number] = deque()
        try:
            while number in self._events:
                while not events:
                    self._advance()
                if events[0].result is not None:
                    del self._events[number]
                yield events.popleft()
        finally:
            self._abandon(number)

    def _advance(self) -> None:
        """One step of the engine; what it brings waits for those who asked."""
        for reported in self.engine.step():
            if reported.request in self._events:
                self._events[reported.request].append(reported.event)

    def _abandon(self, *numbers: int) -> None:
        """Stop requests that nobody waits for any more."""
        for number in numbers:
            if self._events.pop(number, None) is not None:
                self.engine.cancel(number)

    def _options(self, options: GenerationOptions | None, changes: dict[str, Any]) -> GenerationOptions:
        return (options or GenerationOptions()).changed(**changes)

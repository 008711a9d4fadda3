"""The engine loop on prompts and text: what servers and `TriModeLM` are made of."""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from nemodiff_trt.errors import InvalidInputError
from nemodiff_trt.runtime.answer import Answer, StreamEvent
from nemodiff_trt.runtime.engine.engine_stats import EngineStats
from nemodiff_trt.runtime.engine.options import EngineOptions
from nemodiff_trt.runtime.engine.request_checks import RequestChecks
from nemodiff_trt.runtime.engine.token_engine import TokenEngine
from nemodiff_trt.runtime.events import DecodeStep, RowStep
from nemodiff_trt.runtime.learned_sampler import LearnedSampler
from nemodiff_trt.runtime.options import GenerationOptions
from nemodiff_trt.runtime.planner import Policy
from nemodiff_trt.runtime.prompts import Prompt
from nemodiff_trt.runtime.sequence import FinishReason, Sequence, ThinkingBudget
from nemodiff_trt.runtime.session import Session
from nemodiff_trt.runtime.stats import TimedSession
from nemodiff_trt.runtime.streaming import TextStream
from nemodiff_trt.tokenizer import Tokenizer
from nemodiff_trt.vocabulary import Role


@dataclass(frozen=True, slots=True)
class EngineEvent:
    """What one engine run did to one request; the last event of a request carries its result."""

    request: int
    event: StreamEvent


class TriModeEngine:
    """Answers requests that come at any time, in any mode. Not safe for use from several threads at once.

    `submit` queues a request, every `step` takes all of them a little further, until `has_work` is false.
    """

    def __init__(
        self,
        session: Session,
        tokenizer: Tokenizer,
        options: EngineOptions | None = None,
        clock: Callable[[], float] = time.perf_counter,
        policy: Policy | None = None,
        sampler: LearnedSampler | None = None,
    ) -> None:
        """Allocate the cache.

        Args:
            session: runs the engines.
            tokenizer: of the model.
            options: limits of the loop.
            clock: in seconds; deadlines and times are measured by it.
            policy: chooses for requests in mode `auto`; without one they are refused.
            sampler: scores guesses for requests that ask for it; without one they are refused.

        Raises:
            InvalidInputError: the tokenizer knows ids that the model does not, or `max_active` exceeds what was built.
        """
        if tokenizer.vocab_size > session.model.vocab_size:
            raise InvalidInputError("tokenizer", f"{tokenizer.vocab_size} ids", f"at most {session.model.vocab_size}")
        if sampler is not None:
            sampler.check_for(session.model.vocab_size, session.model.mask_token_id)
        self.session = session
        self.tokenizer = tokenizer
        self._timed = TimedSession(session, clock)
        self._tokens = TokenEngine(self._timed, options, policy, sampler)
        self._policy, self._has_sampler = policy, sampler is not None
        self._clock = clock
        self._answers: dict[int, Answer] = {}
        self._deadlines: list[tuple[float, int]] = []
        self._stats = EngineStats()

    @property
    def has_work(self) -> bool:
        """Whether any request waits or decodes."""
        return self._tokens.has_work

    def check_options(self, options: GenerationOptions) -> None:
        """Refuse options that the engines cannot serve.

        Raises:
            InvalidInputError: an option is not usable with these engines.
        """
        self._checks().check_options(options)

    def check(self, prompt: Prompt, options: GenerationOptions, field: str = "prompt") -> tuple[str, list[int]]:
        """Text and token ids of a prompt, if prompt and options can be served.

        Raises:
            InvalidInputError: one of them cannot; `field` names the prompt.
        """
        return self._checks().check(prompt, options, field)

    def submit(
        self,
        prompt: Prompt,
        options: GenerationOptions | None = None,
        *,
        priority: int = 0,
        timeout_s: float | None = None,
        stream_text: bool = True,
        index: int = 0,
    ) -> int:
        """Queue a request; returns its number.

        Args:
            prompt: a text, a chat (list of messages with role and content) or token ids.
            options: how to answer; the defaults of `GenerationOptions` otherwise.
            priority: higher is admitted earlier, see `EngineOptions.priority_s`.
            timeout_s: seconds from now after which the answer ends with what it has, reason `deadline`.
            stream_text: events carry text as it becomes certain; otherwise only the result does, for less work.
            index: which of several sampled answers to the prompt this is; each draws from a seed of its own, and all of them
                compute the prompt once.

        Raises:
            InvalidInputError: prompt, options or limits cannot be served.
            BusyError: too many requests wait.
        """
        chosen = options or GenerationOptions()
        return self.submit_checked(self.check(prompt, chosen), chosen, priority, timeout_s, stream_text, index)

    def submit_checked(
        self,
        prompt: tuple[str, list[int]],
        options: GenerationOptions,
        priority: int = 0,
        timeout_s: float | None = None,
        stream_text: bool = True,
        index: int = 0,
    ) -> int:
        """Queue what `check` returned; everything else as for `submit`."""
        if timeout_s is not None and not 0 < timeout_s < float("inf"):
            raise InvalidInputError("timeout_s", timeout_s, "a positive number of seconds")
        text, token_ids = prompt
        self._tokens.check_room()
        thinking, end_think = None, self.tokenizer.end_think_token_id
        if options.max_thinking_tokens is not None and end_think is not None:
            thinking = ThinkingBudget(options.max_thinking_tokens, end_think)
        eos_token_id = None if options.ignore_eos else self.session.model.eos_token_id
        sequence = Sequence(token_ids, options.max_new_tokens, self.session.limits.max_seq_len, eos_token_id, thinking)
        now_s = self._clock()
        number = self._tokens.submit(sequence, options, priority, now_s, index)
        stream = TextStream(self.tokenizer, options.stop) if stream_text or options.stop else None
        self._answers[number] = Answer(text, sequence, options.mode, self.tokenizer, stream, now_s)
        if timeout_s is not None:
            heapq.heappush(self._deadlines, (now_s + timeout_s, number))
        return number

    def cancel(self, request: int) -> None:
        """End a request with what it has. Its result comes with the next `step`; a request that has ended is left alone."""
        self._tokens.finish(request, FinishReason.CANCELLED)

    def drain(self) -> None:
        """Refuse new requests from now on; those that are here are answered."""
        self._tokens.drain()

    def step(self) -> list[EngineEvent]:
        """Take every request a little further: see `TokenEngine` for what a step is."""
        begin_s = self._clock()
        self._expire(begin_s)
        for number in self._tokens.admit():
            self._answers[number].admit(begin_s)
        events: list[EngineEvent] = []
        for run in self._tokens.run():
            events += self._take_in(run)
        for number in self._tokens.retire():
            answer = self._answers.pop(number, None)
            # Ended from outside, so no event has told it.
            if answer is not None:
                events.append(self._last_event(number, answer))
        self._stats.add_step(self._clock() - begin_s)
        return events

    def stats(self) -> dict[str, Any]:
        """Counts since the engine was made, and what it is doing now, as plain values (see `EngineStats`)."""
        tokens = self._tokens
        return self._stats.to_dict() | {
            "engine_s": self._timed.engine_s,
            "engine_runs": self._timed.num_runs,
            "waiting": tokens.num_waiting,
            "active": tokens.num_active,
            "free_slots": tokens.num_free,
            "prompt_tokens": tokens.num_prompt_tokens,
            "reused_prompt_tokens": tokens.num_reused_tokens,
            "decisions": {str(block): count for block, count in sorted(self._policy.decisions.items())} if self._policy else {},
        }

    def _checks(self) -> RequestChecks:
        session = self.session
        return RequestChecks(
            model=session.model,
            limits=session.limits,
            roles=session.roles,
            has_logits=session.has_logits,
            can_plan=self._policy is not None,
            tokenizer=self.tokenizer,
            has_sampler=self._has_sampler,
        )

    def _expire(self, now_s: float) -> None:
        while self._deadlines and self._deadlines[0][0] <= now_s:
            self._tokens.finish(heapq.heappop(self._deadlines)[1], FinishReason.DEADLINE)

    def _take_in(self, run: DecodeStep) -> list[EngineEvent]:
        now_s, engine_s = self._clock(), self._timed.engine_s
        events = []
        for number, report in run.rows.items():
            answer = self._answers[number]
            text = answer.advance(report, now_s, engine_s)
            self._stats.add_run(run.role, report)
            result = None
            if answer.sequence.finish_reason is not None:
                result = self._answers.pop(number).result()
                self._stats.add_result(result.finish_reason)
            events.append(EngineEvent(number, StreamEvent(run.role, text, tuple(report.emitted), report, result)))
        return events

    def _last_event(self, number: int, answer: Answer) -> EngineEvent:
        answer.end(self._clock(), self._timed.engine_s)
        result = answer.result()
        self._stats.add_result(result.finish_reason)
        return EngineEvent(number, StreamEvent(Role.PREFILL, answer.last_text, (), RowStep([]), result))

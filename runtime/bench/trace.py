"""One answer as it came: tokens, counts and times. And how the engine loop answers a workload."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from nemodiff_trt.runtime.answer import GenerationResult, StreamEvent
from nemodiff_trt.runtime.engine import EngineOptions, TriModeEngine
from nemodiff_trt.runtime.options import GenerationOptions
from nemodiff_trt.runtime.session import Session
from nemodiff_trt.tokenizer import Tokenizer
from nemodiff_trt.vocabulary import Mode, Role

# Modes whose runs verify drafts, and the runs that may do so.
_SPECULATIVE = (Mode.SELF_SPECULATION, Mode.QUADRATIC)
_VERIFYING = (Role.VERIFY, Role.QUADRATIC, Role.DECODE)


@dataclass(frozen=True, slots=True)
class Trace:
    """One answer.

    Attributes:
        token_ids: of the answer, its end-of-sequence token included.
        forward_passes: model runs after prefill.
        reference_nfe: model runs as the published code counts them (see `GenerationStats`).
        step_tokens: tokens that those runs computed for this answer.
        cycles: drafts offered and drafts accepted of every verification; empty without speculation.
        prefill_s: from admission until the first token was computed.
        decode_s: from then to the end.
        engine_s: part of `decode_s` spent inside engine runs; None where they cannot be told apart.
        arrivals_s: seconds after admission at which a caller had tokens in hand, once for each time.
    """

    token_ids: tuple[int, ...]
    forward_passes: int
    reference_nfe: int
    step_tokens: int
    cycles: tuple[tuple[int, int], ...]
    prefill_s: float
    decode_s: float
    engine_s: float | None
    arrivals_s: tuple[float, ...]

    @property
    def later_tokens(self) -> int:
        """Tokens after the first, which comes from prefill."""
        return max(len(self.token_ids) - 1, 0)

    @property
    def first_token_s(self) -> float:
        """From admission until a caller had the first token."""
        return self.arrivals_s[0]


class _Recorder:
    """Collects the events of one request, which was submitted at `begin_s`."""

    def __init__(self, begin_s: float) -> None:
        self._begin_s = begin_s
        self.cycles: list[tuple[int, int]] = []
        self.times_s: list[float] = []
        self.result: GenerationResult | None = None

    def take_in(self, event: StreamEvent, now_s: float, is_speculative: bool) -> None:
        # A step of the loop may prefill and decode: what it tells of a request arrives together.
        if event.token_ids and now_s not in self.times_s[-1:]:
            self.times_s.append(now_s)
        if is_speculative and event.role in _VERIFYING:
            self.cycles.append((len(event.step.drafted), event.step.accepted))
        self.result = event.result

    def trace(self) -> Trace:
        result = self.result
        assert result is not None, "the engine ran to its end"
        stats = result.stats
        admitted_s = self._begin_s + stats.queue_ms / 1e3
        return Trace(
            token_ids=result.token_ids,
            forward_passes=stats.forward_passes,
            reference_nfe=stats.reference_nfe,
            step_tokens=stats.step_tokens,
            cycles=tuple(self.cycles),
            prefill_s=stats.prefill_ms / 1e3,
            decode_s=stats.decode_ms / 1e3,
            engine_s=stats.engine_ms / 1e3,
            arrivals_s=tuple(time_s - admitted_s for time_s in self.times_s),
        )


class EngineSubject:
    """The engine loop with one set of options and so many requests at a time. A fresh loop for every round."""

    def __init__(self, session: Session, tokenizer: Tokenizer, options: GenerationOptions, concurrency: int) -> None:
        self._session = session
        self._tokenizer = tokenizer
        self._options = options
        # Rounds repeat the same prompts: none of them may profit from the one before.
        self._engine_options = EngineOptions(max_active=concurrency, prefix_rows=0, min_prefix=session.limits.max_seq_len)

    def answer(self, prompts: Sequence[list[int]], clock: Callable[[], float] = time.perf_counter) -> list[Trace]:
        """Answers to all prompts, in their order.

        Raises:
            InvalidInputError: options or a prompt do not fit the engines; nothing has run then.
        """
        engine = TriModeEngine(self._session, self._tokenizer, self._engine_options, clock)
        checked = [engine.check(prompt, self._options, f"prompt {place}") for place, prompt in enumerate(prompts)]
        recorders: dict[int, _Recorder] = {}
        for each in checked:
            begin_s = clock()
            recorders[engine.submit_checked(each, self._options, stream_text=False)] = _Recorder(begin_s)
        is_speculative = self._options.mode in _SPECULATIVE
        while engine.has_work:
            events = engine.step()
            now_s = clock()
            for reported in events:
                recorders[reported.request].take_in(reported.event, now_s, is_speculative)
        return [recorder.trace() for recorder in recorders.values()]

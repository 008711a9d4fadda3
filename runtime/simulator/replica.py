"""One engine loop on a simulated clock: the loop is the one that serves, the session is not."""

from __future__ import annotations

import math
from collections.abc import Sequence as Sized
from dataclasses import dataclass

import numpy as np

from nemodiff_trt.errors import InvalidInputError
from nemodiff_trt.runtime.engine import EngineOptions, TokenEngine
from nemodiff_trt.runtime.options import GenerationOptions
from nemodiff_trt.runtime.planner import Policy
from nemodiff_trt.runtime.sequence import Sequence, check_prompt_length
from nemodiff_trt.runtime.simulator.outcome import Outcome
from nemodiff_trt.runtime.simulator.session import SimulatedSession, category_token
from nemodiff_trt.runtime.simulator.trace import TraceRequest


@dataclass(frozen=True, slots=True)
class LoopCost:
    """What the loop takes beside engine runs: `run_ms` a run, `row_ms` a request in a run, `token_ms` a token of its step.

    Raises:
        InvalidInputError: a term is negative or not finite.
    """

    run_ms: float = 0.0
    row_ms: float = 0.0
    token_ms: float = 0.0

    def __post_init__(self) -> None:
        for name in ("run_ms", "row_ms", "token_ms"):
            if not 0 <= getattr(self, name) < math.inf:
                raise InvalidInputError(name, getattr(self, name), "a finite number of milliseconds, 0 or more")

    def seconds(self, num_rows: int, num_tokens: int) -> float:
        """Of one run with `num_rows` requests that take part and `num_tokens` tokens of theirs."""
        return (self.run_ms + self.row_ms * num_rows + self.token_ms * num_tokens) / 1e3


@dataclass(slots=True)
class _Answer:
    request: TraceRequest
    sequence: Sequence
    first_token_s: float | None = None


class Replica:
    """Answers the requests of a trace that are sent to it."""

    def __init__(self, session: SimulatedSession, options: EngineOptions, policy: Policy | None, loop_cost: LoopCost) -> None:
        self.outcomes: list[tuple[int, Outcome]] = []
        self._session = session
        self._engine = TokenEngine(session, options, policy)
        self._loop_cost = loop_cost
        self._answers: dict[int, tuple[int, _Answer]] = {}

    @property
    def num_outstanding(self) -> int:
        return len(self._answers)

    def submit(self, index: int, request: TraceRequest, category: int, options: GenerationOptions) -> None:
        """Queue request `index` of the trace, which has come by now or comes to an idle loop.

        Raises:
            InvalidInputError: the engines were not built for so long a prompt.
        """
        limits = self._session.limits
        check_prompt_length(request.prompt_tokens, limits.max_seq_len, "prompt_tokens")
        prompt = np.full(request.prompt_tokens, category_token(category), np.int64)
        # Prompts of a trace share nothing: a first token of its own keeps the loop from reusing one for another.
        if request.prompt_tokens > 1:
            prompt[0] = -1 - index
        sequence = Sequence(prompt.tolist(), request.output_tokens, limits.max_seq_len, None)
        if not self._engine.has_work:
            self._session.now_s = max(self._session.now_s, request.arrival_s)
        number = self._engine.submit(sequence, options, 0, request.arrival_s)
        self._answers[number] = index, _Answer(request, sequence)

    def advance(self, until_s: float) -> None:
        """Step until the clock reaches `until_s`, or nothing is left to do."""
        while self._engine.has_work and self._session.now_s < until_s:
            self._step()

    def _step(self) -> None:
        self._engine.admit()
        taking_part: dict[int, tuple[int, _Answer]] = {}
        for run in self._engine.run():
            width = self._session.last_step
            self._session.now_s += self._loop_cost.seconds(len(run.rows), len(run.rows) * width)
            taking_part |= {number: self._answers[number] for number in run.rows}
        # Callers hear of all runs of a step once it is done.
        self._note(list(taking_part.values()))
        self._engine.retire()
        for number in [number for number, (_, answer) in self._answers.items() if answer.sequence.finish_reason is not None]:
            del self._answers[number]

    def _note(self, rows: Sized[tuple[int, _Answer]]) -> None:
        now_s = self._session.now_s
        for index, answer in rows:
            if answer.first_token_s is None and answer.sequence.tokens:
                answer.first_token_s = now_s
            if answer.sequence.finish_reason is not None and answer.first_token_s is not None:
                arrival_s, num_tokens = answer.request.arrival_s, len(answer.sequence.tokens)
                self.outcomes.append((index, Outcome(arrival_s, answer.first_token_s, now_s, num_tokens)))

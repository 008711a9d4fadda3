"""How long cycles take in an engine loop, against the steps they consist of: with the work of the host, and its caches.

Step times alone make short cycles look better than they are, because the host does about as much for a cycle of any length:
decoding without drafts took 7 to 17 % longer here, relative to blocks, than its steps.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from nemodiff_trt.runtime.engine import EngineOptions, TriModeEngine
from nemodiff_trt.runtime.options import GenerationOptions
from nemodiff_trt.runtime.planner.calibrate import powers
from nemodiff_trt.runtime.planner.latency_model import LatencyModel
from nemodiff_trt.runtime.planner.planned_request import PlannedRequest
from nemodiff_trt.runtime.planner.policy import Policy, block_lengths_of
from nemodiff_trt.runtime.session import Session
from nemodiff_trt.tokenizer import Tokenizer
from nemodiff_trt.vocabulary import MODE_ROLES, Mode

# Turns of every way of decoding and number of rows, far apart, because machines have slow phases of seconds; and cycles of a
# turn, the first of which find caches that others left.
NUM_ROUNDS = 8
_CYCLES, _COLD_CYCLES = 6, 2
# Every other request is sampled, where engines give logits: that is more work for the host than the most probable token.
_TEMPERATURE = 1.0
# Prompts and answers are short against what a cache holds: this share of it each.
_PROMPT_SHARE, _ANSWER_SHARE = 1 / 8, 1 / 4


def measure_loop(
    session: Session,
    tokenizer: Tokenizer,
    latency: LatencyModel,
    num_rounds: int = NUM_ROUNDS,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[int, dict[int, float]]:
    """Time of cycles in a loop over the predicted time of their steps, by block length (1 for autoregressive) and rows.

    Rows are powers of two. All ways of decoding take turns of a few cycles with the same requests, in random order, and so do
    numbers of rows, so that slow phases of the machine meet all alike.

    Args:
        session: of the bundle.
        tokenizer: of the bundle.
        latency: calibrated from steps of this session.
        num_rounds: turns of every way of decoding and number of rows.
        clock: in seconds.
    """
    if not session.roles.issuperset(MODE_ROLES[Mode.AUTO]):
        return {}
    requests, generator = _requests(session, tokenizer), np.random.default_rng(0)
    ratios: dict[int, dict[int, list[float]]] = {}
    for rows in powers(1, session.limits.max_batch_size) * num_rounds:
        turns = LoopTurns(session, latency, rows, generator, clock)
        _run(TriModeEngine(session, tokenizer, EngineOptions(max_active=rows, prefix_rows=0), clock, turns), turns, requests)
        for length, own in turns.ratios.items():
            ratios.setdefault(length, {}).setdefault(rows, []).extend(own)
    return {length: {rows: statistics.median(own) for rows, own in of_length.items()} for length, of_length in ratios.items()}


def _run(engine: TriModeEngine, turns: LoopTurns, requests: Iterator[tuple[list[int], GenerationOptions]]) -> None:
    """Let the engine, which belongs to `turns` alone, decode as many requests at a time as they have rows."""
    num_running = 0
    while not turns.are_over:
        for prompt, options in itertools.islice(requests, turns.num_rows - num_running):
            engine.submit(prompt, options, stream_text=False)
        num_running = turns.num_rows - sum(event.event.result is not None for event in engine.step())


def _requests(session: Session, tokenizer: Tokenizer) -> Iterator[tuple[list[int], GenerationOptions]]:
    """Random prompts, and long answers: every other one sampled if the engines give logits."""
    generator, limits = np.random.default_rng(0), session.limits
    num_prompt, num_answer = (max(1, int(limits.max_seq_len * share)) for share in (_PROMPT_SHARE, _ANSWER_SHARE))
    greedy = GenerationOptions(mode=Mode.AUTO, max_new_tokens=num_answer, ignore_eos=True)
    for seed in itertools.count():
        is_sampled = session.has_logits and seed % 2 == 1
        options = greedy.changed(temperature=_TEMPERATURE, seed=seed) if is_sampled else greedy
        yield generator.integers(0, tokenizer.vocab_size, num_prompt).tolist(), options


class LoopTurns(Policy):
    """Lets all requests of a loop decode in one way for some cycles, in one way after the other, and times the cycles.

    Attributes:
        num_rows: requests whose cycles count.
        ratios: measured over predicted time of the cycles that count, by block length.
    """

    __slots__ = ("_begin_s", "_due", "_left", "_loop_clock", "_place", "_predicted_ms", "num_rows", "ratios")

    def __init__(
        self,
        session: Session,
        latency: LatencyModel,
        num_rows: int,
        generator: np.random.Generator,
        clock: Callable[[], float],
    ) -> None:
        """Time cycles of `num_rows` requests, a turn of every way of decoding; `clock` is in seconds."""
        longest = session.limits.block_length
        super().__init__(latency, block_lengths_of(session, latency), longest, session.limits.max_batch_size)
        self.ratios: dict[int, list[float]] = {}
        self.num_rows, self._loop_clock = num_rows, clock
        self._due: list[int] = generator.permutation(len(self._costs.candidates)).tolist()
        self._place = self._left = 0
        self._begin_s: float | None = None
        self._predicted_ms = 0.0

    @property
    def are_over(self) -> bool:
        return not self._due and not self._left

    def goes_on(self, requests: Sequence[PlannedRequest]) -> bool:  # noqa: ARG002 - see Policy
        return False

    def decide(self, requests: Sequence[PlannedRequest], history: float, num_waiting: int = 0) -> None:  # noqa: ARG002 - see Policy
        """Set the next cycle of every request as the turn says. It counts where all rows decode, and the turn has begun."""
        if not self._left and self._due:
            self._place, self._left = self._due.pop(), _CYCLES
        choice = self._costs.candidates[self._place]
        for request in requests:
            request.choice = request.next_cycle = choice
        self._begin_s = None
        if len(requests) == self.num_rows and self._left:
            self._left -= 1
            if self._left < _CYCLES - _COLD_CYCLES:
                self._predicted_ms = self._costs.calibrated_ms([(self._place, self.num_rows)], history)
                self._begin_s = self._loop_clock()

    def end_cycle(self) -> None:
        if self._begin_s is not None:
            ratio = 1e3 * (self._loop_clock() - self._begin_s) / self._predicted_ms
            self.ratios.setdefault(self._costs.candidates[self._place].block_length, []).append(ratio)
            self._begin_s = None

"""How an answer was made: counts of engine runs and times."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from nemodiff_trt.config import ModelConfig
from nemodiff_trt.contract import Limits
from nemodiff_trt.runtime.kv_cache import KVCache
from nemodiff_trt.runtime.sequence import Sequence
from nemodiff_trt.runtime.session import Session, StepOutput
from nemodiff_trt.runtime.step_layout import StepLayout
from nemodiff_trt.vocabulary import Mode, Role


@dataclass(frozen=True, slots=True)
class RequestTimes:
    """Seconds a request waited, prefilled and decoded, and how many of the last were spent inside engine runs."""

    queue_s: float
    prefill_s: float
    decode_s: float
    engine_s: float


@dataclass(frozen=True, slots=True)
class GenerationStats:
    """Counts and times of one answer. None stands for a ratio without a denominator.

    Attributes:
        prompt_tokens: tokens of the prompt.
        new_tokens: tokens of the answer; the first comes from prefill.
        forward_passes: engine runs after prefill that decoded this answer, causal commits included.
        prefill_passes: chunks of the prompt.
        reused_tokens: tokens of the prompt that were not computed, because another request had begun alike.
        tokens_per_forward: (new_tokens - 1) / forward_passes; exactly 1.0 in mode `ar`.
        step_tokens: tokens that the runs of `forward_passes` computed for this answer.
        mean_accepted: `self_speculation` and `quadratic` only, tokens emitted per cycle, the verifier's own token included:
            (new_tokens - 1) / cycles.
        mean_accepted_drafts: the same without the verifier's own token.
        reference_nfe: forward evaluations as the published code counts them: one a token in `ar`; denoise passes plus one a
            block in `diffusion`; prefill, draft passes and one verify pass a cycle in `self_speculation`; prefill
            and one a cycle in `quadratic`.
        queue_ms: time until there was room for the request.
        prefill_ms: from there to the first token.
        decode_ms: from there to the end of this answer.
        engine_ms: part of `decode_ms` spent inside engine runs, those of other requests included.
        tokens_per_second: (new_tokens - 1) / decode time.
    """

    prompt_tokens: int
    new_tokens: int
    forward_passes: int
    prefill_passes: int
    reused_tokens: int
    tokens_per_forward: float | None
    step_tokens: int
    mean_accepted: float | None
    mean_accepted_drafts: float | None
    reference_nfe: int
    queue_ms: float
    prefill_ms: float
    decode_ms: float
    engine_ms: float
    tokens_per_second: float | None

    @classmethod
    def of(cls, sequence: Sequence, mode: Mode, times: RequestTimes) -> GenerationStats:
        """Of a finished sequence and its times."""
        later_tokens = max(len(sequence.tokens) - 1, 0)
        cycles = sequence.cycles if mode in (Mode.SELF_SPECULATION, Mode.QUADRATIC) else 0
        return cls(
            prompt_tokens=len(sequence.prompt),
            new_tokens=len(sequence.tokens),
            forward_passes=sequence.forward_passes,
            prefill_passes=sequence.prefill_passes,
            reused_tokens=sequence.reused_tokens,
            tokens_per_forward=_ratio(later_tokens, sequence.forward_passes),
            step_tokens=sequence.step_tokens,
            mean_accepted=_ratio(later_tokens, cycles),
            mean_accepted_drafts=_ratio(sequence.accepted_drafts, cycles),
            reference_nfe=reference_nfe(sequence, mode),
            queue_ms=times.queue_s * 1e3,
            prefill_ms=times.prefill_s * 1e3,
            decode_ms=times.decode_s * 1e3,
            engine_ms=times.engine_s * 1e3,
            tokens_per_second=_ratio(later_tokens, times.decode_s),
        )


def reference_nfe(sequence: Sequence, mode: Mode) -> int:
    """Number of forward evaluations in the accounting of the published code (see `GenerationStats`)."""
    if mode is Mode.AR:
        return len(sequence.tokens)
    if mode is Mode.AUTO:
        return sequence.forward_passes + 1
    own_passes = sequence.draft_passes + sequence.cycles
    return own_passes if mode is Mode.DIFFUSION else own_passes + 1


def _ratio(numerator: float, denominator: float) -> float | None:
    return numerator / denominator if denominator else None


class TimedSession:
    """A session that adds up the seconds, by `clock`, spent in its runs."""

    __slots__ = ("_clock", "_session", "engine_s", "num_runs")

    def __init__(self, session: Session, clock: Callable[[], float] = time.perf_counter) -> None:
        self._session = session
        self._clock = clock
        self.engine_s = 0.0
        self.num_runs = 0

    @property
    def model(self) -> ModelConfig:
        return self._session.model

    @property
    def limits(self) -> Limits:
        return self._session.limits

    @property
    def has_logits(self) -> bool:
        return self._session.has_logits

    @property
    def roles(self) -> frozenset[Role]:
        return self._session.roles

    def create_cache(self, batch_size: int, spare_rows: int = 0) -> KVCache[Any]:
        return self._session.create_cache(batch_size, spare_rows)

    def run(
        self,
        role: Role,
        input_ids: np.ndarray,
        cache: KVCache[Any],
        last_index: np.ndarray | None = None,
        layout: StepLayout | None = None,
    ) -> StepOutput:
        begin = self._clock()
        output = self._session.run(role, input_ids, cache, last_index, layout)
        self.engine_s += self._clock() - begin
        self.num_runs += 1
        return output

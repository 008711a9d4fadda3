"""Answers of a model and how far drafts are right at every position of them, recorded once; and a session that replays them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from nemodiff_trt.runtime.kv_cache import KVCache
from nemodiff_trt.runtime.options import GenerationOptions
from nemodiff_trt.runtime.planner import Step
from nemodiff_trt.runtime.rows.decider import GreedyDecider, SampledDecider
from nemodiff_trt.runtime.rows.row_decoder import RowOutput
from nemodiff_trt.runtime.sampling import SamplingWorkspace, TokenChooser
from nemodiff_trt.runtime.sequence import Sequence as Answer
from nemodiff_trt.runtime.session import Session, StepOutput
from nemodiff_trt.runtime.step_layout import StepLayout
from nemodiff_trt.vocabulary import Role

# Token ids of a replay tell the request and the position in its answer.
_IDS_PER_REQUEST = 1 << 20
_WRONG = -1


@dataclass(frozen=True)
class Recorded:
    """One request.

    Attributes:
        num_prompt: tokens.
        num_answer: tokens.
        accepted: right drafts of a block behind the first 1 to `num_answer` - 1 tokens, by block length.
    """

    num_prompt: int
    num_answer: int
    accepted: dict[int, np.ndarray]


def record(
    session: Session, prompt: Sequence[int], answer: Sequence[int], options: GenerationOptions, block_lengths: Sequence[int]
) -> Recorded:
    """Draft behind every token of an answer.

    Args:
        session: with at least two rows and the roles prefill and draft.
        prompt: of the request.
        answer: that `ar` gives, so what verification accepts.
        options: of the request.
        block_lengths: of the drafts.
    """
    workspace = SamplingWorkspace(session.model.vocab_size, session.model.mask_token_id)
    chooser = TokenChooser(options.sampling, workspace, prompt, list(answer))
    decider = SampledDecider(chooser, session.model.mask_token_id) if options.sampling.needs_logits else GreedyDecider()
    num_rows, tokens = session.limits.max_batch_size, [*prompt, *answer]
    cache = session.create_cache(num_rows, 1)
    everything = cache.rows(num_rows, num_rows + 1)
    for begin in range(0, len(tokens), session.limits.prefill_chunk):
        chunk = np.array([tokens[begin : begin + session.limits.prefill_chunk]])
        session.run(Role.PREFILL, chunk, everything, np.array([chunk.shape[1] - 1]))
        everything.length += chunk.shape[1]
    accepted = {length: np.zeros(len(answer), np.int64) for length in block_lengths}
    for length, found in accepted.items():
        for begin in range(1, len(answer), num_rows):
            places = range(begin, min(begin + num_rows, len(answer)))
            ids = np.full((len(places), length), session.model.mask_token_id)
            for row, place in enumerate(places):
                num_cached = len(prompt) + place - 1
                cache.copy_row(num_rows, row, 0, num_cached)
                cache.length[row], ids[row, 0] = num_cached, answer[place - 1]
            output = session.run(Role.DRAFT, ids, cache.rows(0, len(places)))
            for row, place in enumerate(places):
                logits = None if output.logits is None else output.logits[row]
                drafts = decider.draft(RowOutput(output.token[row], output.confidence[row], logits), place)
                wanted = np.asarray(answer[place : place + length - 1])
                is_wrong = np.flatnonzero(drafts[: len(wanted)] != wanted)
                found[place] = is_wrong[0] if is_wrong.size else len(wanted)
    return Recorded(len(prompt), len(answer), accepted)


class Clock(Protocol):
    """Told of every run."""

    def run(self, step: Step) -> None: ...


class ReplaySession:
    """Gives the tokens of recorded requests, whatever roles they are asked of."""

    has_logits = False

    def __init__(self, like: Session, requests: Sequence[Recorded]) -> None:
        """Replay `requests`, with the limits and roles of the session they were recorded on. `clock` is to be set."""
        self.model, self.limits, self.roles = like.model, like.limits, like.roles
        self.requests = requests
        self.clock: Clock

    def start(self, request: int) -> Answer:
        """A request without tokens, whose answer will be as long as the recorded one."""
        recorded = self.requests[request]
        prompt = [request * _IDS_PER_REQUEST] * recorded.num_prompt
        return Answer(prompt, recorded.num_answer, self.limits.max_seq_len, None)

    def check(self, answers: Sequence[Answer]) -> None:
        """Refuse answers that are not the recorded ones.

        Raises:
            RuntimeError: one has other tokens.
        """
        for request, answer in enumerate(answers):
            first = request * _IDS_PER_REQUEST
            if answer.tokens != list(range(first, first + self.requests[request].num_answer)):
                raise RuntimeError(f"request {request} has other tokens than recorded; its time would mean nothing")

    def create_cache(self, batch_size: int, spare_rows: int = 0) -> KVCache[Any]:
        return KVCache([], [], np.zeros(batch_size + spare_rows, np.int64), self.limits.cache_capacity)

    def run(
        self,
        role: Role,
        input_ids: np.ndarray,
        cache: KVCache[Any],
        last_index: np.ndarray | None = None,  # noqa: ARG002 - see Session
        layout: StepLayout | None = None,  # noqa: ARG002 - see Session
    ) -> StepOutput:
        """Arguments and output as of `Session.run`."""
        self.clock.run(Step.of_run(role, input_ids, cache.length))
        if role is Role.PREFILL:
            # Ids of a prompt are what its answer begins with.
            token = input_ids[:, :1].copy()
        else:
            token = input_ids[:, :1] + np.arange(1, input_ids.shape[1] + 1)
            if role is Role.DRAFT:
                self._spoil(token)
        return StepOutput(token, np.ones(token.shape, np.float32))

    def _spoil(self, token: np.ndarray) -> None:
        """Make the guesses wrong that were. Those of a block are for the positions behind its seed."""
        length = token.shape[1]
        token[:, 1:] = token[:, :-1].copy()
        for row in token:
            request, place = divmod(int(row[0]), _IDS_PER_REQUEST)
            # Rows that only lie between others keep ids of an earlier step.
            if request < len(self.requests) and 0 < place < self.requests[request].num_answer:
                row[1 + int(self.requests[request].accepted[length][place]) :] = _WRONG

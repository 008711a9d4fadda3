"""The engine loop on token ids: admit, prefill, run what the requests ask for, let the finished go.

One step of the loop is one chunk of prefill at most for every request, then one run for each group of requests with the same
role and step length: drafts before denoising before verification, so that a request drafts and verifies in the same step and
all speculating requests stay in phase, whenever they joined.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from nemodiff_trt.errors import BusyError, InvalidInputError
from nemodiff_trt.runtime.engine.admission_queue import AdmissionQueue
from nemodiff_trt.runtime.engine.grouping import PrefillRun, PromptPart, prefill_runs
from nemodiff_trt.runtime.engine.layout_buffers import LayoutBuffers
from nemodiff_trt.runtime.engine.options import EngineOptions
from nemodiff_trt.runtime.engine.prefix_store import PrefixStore, common_prefix
from nemodiff_trt.runtime.engine.slot_table import Move, SlotTable
from nemodiff_trt.runtime.events import DecodeStep, RowStep
from nemodiff_trt.runtime.learned_sampler import LearnedSampler
from nemodiff_trt.runtime.options import GenerationOptions
from nemodiff_trt.runtime.planner import PlannedRequest, Policy
from nemodiff_trt.runtime.row_ranges import ranges
from nemodiff_trt.runtime.rows.decider import Decider, GreedyDecider, SampledDecider
from nemodiff_trt.runtime.rows.planned import PlannedRows
from nemodiff_trt.runtime.rows.prompt import PromptRow
from nemodiff_trt.runtime.rows.row_decoder import RowDecoder, RowOutput
from nemodiff_trt.runtime.rows.start import SharedKnowledge, start_planned, start_row
from nemodiff_trt.runtime.sampling import SamplingWorkspace, TokenChooser
from nemodiff_trt.runtime.sequence import FinishReason, Sequence
from nemodiff_trt.runtime.session import Session, StepOutput
from nemodiff_trt.vocabulary import Mode, Role

# Prefill comes first and is scheduled apart.
_ORDER = (Role.DRAFT, Role.DENOISE, Role.VERIFY, Role.DECODE, Role.QUADRATIC)


@dataclass(slots=True)
class _Request:
    """One request. `donor` is a request whose prompt begins alike, `num_shared` how many tokens it will have to give;
    `planned` chooses the rows of one in mode auto, from the end of its prompt on.
    """

    options: GenerationOptions
    row: PromptRow | RowDecoder
    donor: int | None = None
    num_shared: int = 0
    planned: PlannedRows | None = None

    @property
    def sequence(self) -> Sequence:
        return self.row.sequence


class TokenEngine:
    """Decodes any number of sequences, as many at a time as there are slots. Not safe for use from several threads at once.

    Call `admit`, exhaust `run`, call `retire`, and again while `has_work`. Between two engine runs a caller may end a sequence
    with `Sequence.finish`.
    """

    def __init__(
        self,
        session: Session,
        options: EngineOptions | None = None,
        policy: Policy | None = None,
        sampler: LearnedSampler | None = None,
    ) -> None:
        """Allocate the cache. Requests in mode `auto` decode as `policy` chooses, those that ask for `sampler` by its scores.

        Raises:
            InvalidInputError: `max_active` exceeds what the engines were built for.
        """
        chosen = options or EngineOptions()
        limits = session.limits
        num_slots = limits.max_batch_size if chosen.max_active is None else chosen.max_active
        if num_slots > limits.max_batch_size:
            raise InvalidInputError("max_active", num_slots, f"at most {limits.max_batch_size}, the built max_batch_size")
        self.options = chosen
        self.num_prompt_tokens = self.num_reused_tokens = 0
        self._session = session
        self._queue = AdmissionQueue(chosen.max_waiting, chosen.priority_s)
        self._slots = SlotTable(num_slots)
        self._prefixes = PrefixStore(num_slots, chosen.prefix_rows)
        # Rows of the active requests by slot, then the kept ones.
        self.cache = session.create_cache(num_slots, chosen.prefix_rows)
        self._waiting: dict[int, _Request] = {}
        # In the order of admission, which is that of prefill.
        self._active: dict[int, _Request] = {}
        # Requests in mode auto, in the order of their slots; None once a request came, went or ended its prompt.
        self._planned: list[tuple[_Request, PlannedRows]] | None = None
        self._plans: list[PlannedRequest] = []
        # Ended while they waited.
        self._dropped: list[int] = []
        self._numbers = itertools.count()
        self._is_draining = False
        self._shared = SharedKnowledge(policy=policy, sampler=sampler)
        # One block of memory for the token ids of every step.
        self._ids = np.zeros(num_slots * max(limits.longest_step(role) for role in session.roles), np.int64)
        self._last_index = np.zeros(num_slots, np.int64)
        self._layouts = LayoutBuffers()
        self._greedy = GreedyDecider()
        self._workspace = SamplingWorkspace(session.model.vocab_size, session.model.mask_token_id)

    @property
    def has_work(self) -> bool:
        """Whether any request waits or decodes."""
        return bool(self._waiting or self._active or self._dropped)

    @property
    def num_active(self) -> int:
        return len(self._active)

    @property
    def num_waiting(self) -> int:
        return len(self._queue)

    @property
    def num_free(self) -> int:
        return self._slots.num_free

    def check_room(self) -> None:
        """Refuse one more request.

        Raises:
            BusyError: too many wait, or the engine is draining.
        """
        if self._is_draining:
            raise BusyError("busy: the engine takes no more requests, it is shutting down")
        self._queue.check_room()

    def submit(
        self, sequence: Sequence, options: GenerationOptions, priority: int = 0, now_s: float = 0.0, index: int = 0
    ) -> int:
        """Queue a sequence without tokens; returns its number.

        Args:
            sequence: prompt and limits.
            options: already checked against the session's limits and roles.
            priority: higher is earlier.
            now_s: the caller's clock, for the order of admission.
            index: which of several sampled answers to the prompt this is; each draws from a seed of its own.

        Raises:
            BusyError: see `check_room`.
        """
        self.check_room()
        number = next(self._numbers)
        self._queue.push(number, priority, now_s)
        self._waiting[number] = _Request(options, PromptRow(sequence, self._decider_for(sequence, options, index)))
        return number

    def drain(self) -> None:
        """Take no more requests from now on; those that are here go on."""
        self._is_draining = True

    def finish(self, number: int, reason: FinishReason) -> None:
        """End a request before its time. It leaves with the next `retire`; one that ended already is left alone."""
        if self._queue.discard(number):
            self._waiting.pop(number).sequence.finish(reason)
            self._dropped.append(number)
        elif number in self._active and self._active[number].sequence.finish_reason is None:
            self._active[number].sequence.finish(reason)
            self._planned = None

    def admit(self) -> list[int]:
        """Give free slots to those who wait; returns their numbers."""
        admitted: list[int] = []
        while self._slots.num_free and (number := self._queue.pop()) is not None:
            request = self._active[number] = self._waiting.pop(number)
            self._carry_out(self._slots.insert(number, self._lane(request.options)))
            self.cache.length[self._slots.slots[number]] = 0
            self._reuse_prefix(number, request)
            self._planned = None
            admitted.append(number)
        return admitted

    def run(self) -> Iterator[DecodeStep]:
        """One step of the loop, a report after each engine run."""
        # Slots change when requests come and go, not here.
        rows = [(number, self._active[number]) for number in self._slots.occupants]
        for prefill in self._plan_prefill():
            yield self._prefill(rows[prefill.begin : prefill.end], prefill)
        self._plan(rows)
        for role in _ORDER:
            steps: dict[int, list[int]] = {}
            for slot, (_, request) in enumerate(rows):
                row = request.row
                if row.role is role and row.sequence.finish_reason is None:
                    steps.setdefault(row.step_length, []).append(slot)
            for step, slots in steps.items():
                for begin, end in ranges(slots):
                    yield self._decode(rows[begin:end], role, step, begin)
        if self._shared.policy is not None and self._planned and len(self._planned) == len(rows):
            self._shared.policy.end_cycle()

    def retire(self) -> list[int]:
        """Remove the requests that are finished; returns their numbers."""
        finished = [number for number, request in self._active.items() if request.sequence.finish_reason is not None]
        for number in finished:
            request = self._active.pop(number)
            if request.planned is not None:
                request.planned.end(request.sequence)
            self._keep_prefix(self._slots.slots[number], request)
            self._carry_out(self._slots.remove(number))
            self._planned = None
        dropped, self._dropped = self._dropped, []
        return dropped + finished

    def _plan(self, rows: list[tuple[int, _Request]]) -> None:
        """Choose how requests in mode `auto` go on."""
        policy = self._shared.policy
        if policy is None:
            return
        if self._planned is None:
            self._planned = []
            for slot, (_, request) in enumerate(rows):
                if request.planned is not None and request.sequence.finish_reason is None:
                    request.planned.request.slot = slot
                    self._planned.append((request, request.planned))
            self._plans = [planned.request for _, planned in self._planned]
        if self._planned and not policy.goes_on(self._plans):
            for request, planned in self._planned:
                planned.request.num_emitted = len(request.sequence.tokens)
            history = sum(request.row.num_cached for request, _ in self._planned) / len(self._planned)
            policy.decide(self._plans, history, self.num_waiting)
            for request, planned in self._planned:
                assert not isinstance(request.row, PromptRow), "planned from the end of its prompt on"
                request.row = planned.following(request.row)

    def _decider_for(self, sequence: Sequence, options: GenerationOptions, index: int) -> Decider:
        if not options.sampling.needs_logits:
            return self._greedy
        chooser = TokenChooser(options.sampling, self._workspace, sequence.prompt.tolist(), sequence.tokens, index)
        return SampledDecider(chooser, self._session.model.mask_token_id)

    def _lane(self, options: GenerationOptions) -> tuple[Mode, int]:
        if options.mode in (Mode.AR, Mode.AUTO):
            return options.mode, 1
        return options.mode, options.block_length_for(self._session.limits)

    def _reuse_prefix(self, number: int, request: _Request) -> None:
        """Copy what another row already computed of the prompt, or note whose prefill to wait for."""
        prompt = request.sequence.prompt
        self.num_prompt_tokens += len(prompt)
        # The last token has to run: its successor is the answer's first.
        most = len(prompt) - 1
        row, length = self._prefixes.match(prompt) or (-1, 0)
        is_kept = row >= 0
        for other, slot in self._slots.slots.items():
            shared = 0 if other == number else common_prefix(self._active[other].sequence.prompt, prompt)
            if shared > length:
                row, length, is_kept, request.donor = slot, shared, False, other
        request.num_shared = min(length, most)
        if request.num_shared < self.options.min_prefix:
            request.donor = None
        elif is_kept:
            self._prefixes.touch(row)
            self._take_over(row, number, request)

    def _take_over(self, source: int, number: int, request: _Request) -> None:
        """Make the first `num_shared` tokens of row `source` those of a request in prefill."""
        assert isinstance(request.row, PromptRow), "only prompts are shared"
        slot, begin, end = self._slots.slots[number], request.row.num_cached, request.num_shared
        if end > begin:
            self.cache.copy_row(source, slot, begin, end)
            self.cache.length[slot] = request.row.num_cached = end
            self.num_reused_tokens += end - begin
            request.sequence.reused_tokens += end - begin
        request.donor = None

    def _waits_for_donor(self, number: int, request: _Request) -> bool:
        """Whether another request will soon have computed the beginning of this prompt. Takes it over once it has."""
        if request.donor is None:
            return False
        donor = self._active.get(request.donor)
        if donor is None or donor.sequence.finish_reason is not None:
            request.donor = None
            return False
        if donor.row.num_cached < request.num_shared:
            return True
        self._take_over(self._slots.slots[request.donor], number, request)
        return False

    def _plan_prefill(self) -> list[PrefillRun]:
        parts: list[PromptPart] = []
        budget = self.options.prefill_budget
        chunk = self._session.limits.prefill_chunk
        for number, request in self._active.items():
            row = request.row
            if not isinstance(row, PromptRow) or row.sequence.finish_reason is not None:
                continue
            if self._waits_for_donor(number, request):
                continue
            if parts and budget < min(chunk, row.num_remaining):
                break
            budget -= min(chunk, row.num_remaining)
            parts.append(PromptPart(self._slots.slots[number], row.num_cached, row.num_remaining))
        return prefill_runs(parts, chunk, self.cache.capacity)

    def _prefill(self, rows: list[tuple[int, _Request]], run: PrefillRun) -> DecodeStep:
        ids, last_index = self._step_ids(len(rows), run.step), self._last_index[: len(rows)]
        prompts = [request.row for _, request in rows if isinstance(request.row, PromptRow)]
        for place, prompt in enumerate(prompts):
            last_index[place] = prompt.fill(ids[place]) - 1
        output = self._session.run(Role.PREFILL, ids, self.cache.rows(run.begin, run.end), last_index)
        sizes, reports = (last_index + 1).tolist(), {}
        for place, ((number, request), prompt) in enumerate(zip(rows, prompts, strict=True)):
            # Ended between two runs of this step.
            if prompt.sequence.finish_reason is not None:
                continue
            reports[number] = prompt.absorb(sizes[place], _row_of(output, place))
            self.cache.length[run.begin + place] = prompt.num_cached
            if not prompt.num_remaining and prompt.sequence.finish_reason is None:
                session = self._session
                request.row = start_row(prompt, request.options, session.model, session.limits, self._shared)
                request.planned = start_planned(prompt, request.options, session.model, self._shared)
                self._planned = None
        return DecodeStep(Role.PREFILL, reports)

    def _decode(self, rows: list[tuple[int, _Request]], role: Role, step: int, begin: int) -> DecodeStep:
        ids, running = self._step_ids(len(rows), step), []
        layout = self._layouts.of(len(rows), step) if role.takes_layout else None
        for place, (number, request) in enumerate(rows):
            row = request.row
            if isinstance(row, PromptRow) or row.role is not role or row.step_length != step:
                continue
            if row.sequence.finish_reason is None:
                own = row.fill(ids[place])
                if layout is not None:
                    layout.row(place).copy_from(own)
                running.append((place, number, request, row))
        output = self._session.run(role, ids, self.cache.rows(begin, begin + len(rows)), None, layout)
        reports: dict[int, RowStep] = {}
        for place, number, request, row in running:
            report = reports[number] = row.absorb(_row_of(output, place))
            if role is Role.VERIFY and request.planned is not None:
                request.planned.take_in(row.sequence, report)
            for source, target in row.moves:
                self.cache.move(begin + place, source, target)
            self.cache.length[begin + place] = row.num_cached
            row.sequence.step_tokens += step
        return DecodeStep(role, reports)

    def _step_ids(self, batch: int, step: int) -> Any:
        """Token ids [B,S] in preallocated memory. Rows nobody fills keep ids of an earlier step, which are as good as any."""
        return self._ids[: batch * step].reshape(batch, step)

    def _keep_prefix(self, slot: int, request: _Request) -> None:
        """Copy the row of a finished request to a spare one."""
        sequence = request.sequence
        tokens = np.concatenate([sequence.prompt, np.asarray(sequence.tokens, np.int64)])
        tokens = tokens[: min(request.row.num_cached, sequence.num_cacheable)]
        kept = self._prefixes.keep(tokens) if len(tokens) >= self.options.min_prefix else None
        if kept is not None:
            self.cache.copy_row(slot, kept.row, kept.num_present, len(tokens))

    def _carry_out(self, moves: list[Move]) -> None:
        for move in moves:
            num_cached = self._active[move.request].row.num_cached
            self.cache.copy_row(move.source, move.target, 0, num_cached)
            self.cache.length[move.target] = num_cached


def _row_of(output: StepOutput, place: int) -> RowOutput:
    return RowOutput(output.token[place], output.confidence[place], None if output.logits is None else output.logits[place])

"""One run: every case answers every workload, is compared with `ar`, and only then timed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from nemodiff_trt.errors import InvalidInputError, NemodiffError
from nemodiff_trt.runtime.bench.accounting import counts, times
from nemodiff_trt.runtime.bench.measure import interleaved, median_ratio
from nemodiff_trt.runtime.bench.settings import LOOKUP_TOKENS, REFERENCE, TRANSFORMERS_LOOKUP, BenchSettings, Case, cases
from nemodiff_trt.runtime.bench.trace import EngineSubject, Trace
from nemodiff_trt.runtime.bench.workload import BenchPrompt, Workload
from nemodiff_trt.runtime.evaluation import final_text
from nemodiff_trt.runtime.prompts import encode_prompt
from nemodiff_trt.runtime.sequence import check_prompt_length
from nemodiff_trt.runtime.session import Session
from nemodiff_trt.tokenizer import Tokenizer

Note = Callable[[str], object]


class OutputsDifferError(NemodiffError):
    """A lossless case gave other tokens than `ar`: its speed would mean nothing."""


class Subject(Protocol):
    """Answers prompts in one way."""

    def answer(self, prompts: Sequence[list[int]]) -> list[Trace]: ...


@dataclass(frozen=True, slots=True)
class Bench:
    """What answers.

    Attributes:
        session: runs the engines.
        tokenizer: of the model.
        reference_model: the same weights in `transformers`; needed for its baselines only.
        require_equal: refuse to time a lossless case that differs from `ar`; half precision does not promise equality.
    """

    session: Session
    tokenizer: Tokenizer
    reference_model: Any = None
    require_equal: bool = True

    def run(self, workloads: Sequence[Workload], settings: BenchSettings, note: Note = lambda _: None) -> list[dict[str, Any]]:
        """Numbers of every workload, concurrency and case; `note` hears what is being done.

        Raises:
            InvalidInputError: the engines cannot serve a case or a prompt; nothing has run then.
            OutputsDifferError: a lossless case differs from `ar`; nothing of its concurrency has been timed then.
        """
        chosen = cases(settings)
        self._check(chosen, settings)
        encoded = {workload.name: self._encode(workload) for workload in workloads}
        found = []
        for workload in workloads:
            for concurrency in settings.concurrency:
                fitting = [case for case in chosen if concurrency == 1 or not case.is_single]
                note(f"{workload.name}, {concurrency} at a time: {len(fitting)} cases")
                group = _Group(self, workload, encoded[workload.name], concurrency)
                found += group.measure(fitting, settings.num_repeats, settings.num_timed(concurrency))
        return found

    def subject(self, case: Case, concurrency: int, max_new_tokens: int) -> Subject:
        """What answers in the way of `case`."""
        if case.options is not None:
            return EngineSubject(self.session, self.tokenizer, case.options, concurrency)
        from nemodiff_trt.runtime.bench.baselines import TransformersSubject

        lookup = LOOKUP_TOKENS if case.name == TRANSFORMERS_LOOKUP else 0
        return TransformersSubject(self.reference_model, max_new_tokens, lookup)

    def _check(self, chosen: Sequence[Case], settings: BenchSettings) -> None:
        for case in chosen:
            if case.options is not None:
                case.options.check_for(self.session.limits, self.session.roles)
            elif self.reference_model is None:
                raise InvalidInputError("baselines", case.name, "those of this project, or a --checkpoint for transformers")
        most = self.session.limits.max_batch_size
        if max(settings.concurrency) > most:
            raise InvalidInputError("concurrency", max(settings.concurrency), f"at most {most}, the built max_batch_size")

    def _encode(self, workload: Workload) -> list[list[int]]:
        encoded = []
        for place, prompt in enumerate(workload.prompts):
            field = f"{workload.name}, prompt {place}"
            chat: Any = [dict(message) for message in prompt.messages]
            if not self.tokenizer.has_chat_template:
                chat = "\n".join(message["content"] for message in chat)
            _, ids = encode_prompt(chat, field, self.tokenizer, self.session.model, prompt.enable_thinking)
            check_prompt_length(len(ids), self.session.limits.max_seq_len, field)
            encoded.append(ids)
        return encoded


class _Group:
    """The cases of one workload and one concurrency, which are compared and take turns."""

    def __init__(self, bench: Bench, workload: Workload, prompts: list[list[int]], concurrency: int) -> None:
        self._bench = bench
        self._workload = workload
        self._prompts = prompts
        self._concurrency = concurrency

    def measure(self, chosen: Sequence[Case], num_repeats: int, num_timed: int | None) -> list[dict[str, Any]]:
        reference = chosen[0].options
        assert reference is not None, "the first case is ar"
        subjects = {case.name: self._bench.subject(case, self._concurrency, reference.max_new_tokens) for case in chosen}
        # Also warms up.
        checked = {name: subject.answer(self._prompts) for name, subject in subjects.items()}
        differing = {case.name: self._differing(checked[case.name], checked[REFERENCE]) for case in chosen}
        for case in chosen:
            if case.is_lossless and differing[case.name] and self._bench.require_equal:
                raise OutputsDifferError(
                    f"{case.name} differs from {REFERENCE} on prompts {differing[case.name][:8]} of {self._workload.name},"
                    f" {self._concurrency} at a time: nothing was timed"
                )
        rounds: dict[str, list[list[Trace]]] = {name: [] for name in subjects}

        def timed(name: str) -> Callable[[], object]:
            return lambda: rounds[name].append(subjects[name].answer(self._prompts[:num_timed]))

        seconds = interleaved({name: timed(name) for name in subjects}, num_repeats, num_warmup=0)
        return [
            self._facts(case, len(differing[case.name]))
            | self._counts(checked[case.name])
            | times(rounds[case.name], seconds[case.name])
            | {"speed_over_ar": median_ratio(seconds[REFERENCE], seconds[case.name])}
            for case in chosen
        ]

    def _facts(self, case: Case, num_differing: int) -> dict[str, Any]:
        options = case.options
        return {
            "workload": self._workload.name,
            "case": case.name,
            "mode": None if options is None else str(options.mode),
            "block_length": None if options is None else options.block_length,
            "threshold": None if options is None else options.threshold,
            "drafter": case.drafter,
            "concurrency": self._concurrency,
            "is_lossless": case.is_lossless,
            "answers_unlike_ar": num_differing,
        }

    def _counts(self, traces: Sequence[Trace]) -> dict[str, Any]:
        correct = [self._is_correct(prompt, trace) for prompt, trace in zip(self._workload.prompts, traces, strict=True)]
        by_category = {}
        for name in dict.fromkeys(prompt.category for prompt in self._workload.prompts):
            places = [place for place, prompt in enumerate(self._workload.prompts) if prompt.category == name]
            by_category[name] = counts([traces[place] for place in places], [correct[place] for place in places])
        return counts(traces, correct) | {"categories": by_category}

    def _is_correct(self, prompt: BenchPrompt, trace: Trace) -> bool | None:
        return prompt.is_correct(final_text(self._bench.tokenizer, trace.token_ids))

    @staticmethod
    def _differing(traces: Sequence[Trace], wanted: Sequence[Trace]) -> list[int]:
        pairs = zip(traces, wanted, strict=True)
        return [place for place, (one, other) in enumerate(pairs) if one.token_ids != other.token_ids]


def settings_as_plain_values(settings: BenchSettings) -> dict[str, Any]:
    """Ready for JSON."""
    return {name: list(map(str, value)) if name == "modes" else value for name, value in dataclasses.asdict(settings).items()}

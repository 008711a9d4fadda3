"""What a run covers, and the cases that come of it."""

from __future__ import annotations

from dataclasses import dataclass

from nemodiff_trt.errors import InvalidInputError
from nemodiff_trt.runtime.options import GenerationOptions
from nemodiff_trt.vocabulary import Mode

REFERENCE = "ar"
LOOKUP = "prompt_lookup"
TRANSFORMERS = "transformers"
TRANSFORMERS_LOOKUP = "transformers_prompt_lookup"
MODEL_DRAFTER, LOOKUP_DRAFTER = "model", "prompt look-up"
BASELINES = (LOOKUP, TRANSFORMERS, TRANSFORMERS_LOOKUP)
# Defaults of `transformers`.
LOOKUP_TOKENS = 10
LOOKUP_NGRAM = 2
FIXED_MODES = tuple(mode for mode in Mode if mode is not Mode.AUTO)


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchSettings:
    """Axes of a run.

    Attributes:
        modes: fixed modes; `ar` is always measured, because the others are checked against it.
        block_lengths: of the modes that have blocks.
        thresholds: of `diffusion`.
        concurrency: requests at a time, in turn.
        max_new_tokens: limit of an answer.
        num_repeats: timed rounds of every case; a round before them warms up and is checked.
        num_timed_prompts: only the first so many prompts of a workload are timed, and at least two for each request at a time;
            the others are answered once, for what does not depend on the clock. None for all.
        baselines: of `BASELINES`; `prompt_lookup` at every block length, those of `transformers` one request at a time.

    Raises:
        InvalidInputError: an axis is empty, twice the same or out of range.
    """

    modes: tuple[Mode, ...] = (Mode.AR, Mode.DIFFUSION, Mode.SELF_SPECULATION)
    block_lengths: tuple[int, ...] = (8, 16, 32)
    thresholds: tuple[float, ...] = (0.9,)
    concurrency: tuple[int, ...] = (1,)
    max_new_tokens: int = 128
    num_repeats: int = 3
    num_timed_prompts: int | None = None
    baselines: tuple[str, ...] = (LOOKUP,)

    def __post_init__(self) -> None:
        for name in ("modes", "block_lengths", "thresholds", "concurrency"):
            axis = getattr(self, name)
            if not axis or len(set(axis)) != len(axis):
                raise InvalidInputError(name, list(map(str, axis)), "at least one value, none of them twice")
        if Mode.AUTO in self.modes:
            raise InvalidInputError("modes", str(Mode.AUTO), ", ".join(FIXED_MODES))
        for name in self.baselines:
            if name not in BASELINES:
                raise InvalidInputError("baselines", name, ", ".join(BASELINES))
        for name, least in (("num_repeats", 1), ("num_timed_prompts", 1), ("max_new_tokens", 2), ("concurrency", 1)):
            value = getattr(self, name)
            if value is not None and min(value if isinstance(value, tuple) else (value,)) < least:
                raise InvalidInputError(name, value, f"integers of at least {least}")

    def num_timed(self, concurrency: int) -> int | None:
        """How many prompts are timed with so many requests at a time; None for all. Fewer than two waves would mostly show how
        a batch runs empty.
        """
        return None if self.num_timed_prompts is None else max(self.num_timed_prompts, 2 * concurrency)


@dataclass(frozen=True, slots=True)
class Case:
    """One way to answer. Without `options` it is a baseline of `transformers`."""

    name: str
    options: GenerationOptions | None
    is_lossless: bool = True
    drafter: str | None = None

    @property
    def is_single(self) -> bool:
        """Whether it takes one request at a time only."""
        return self.options is None


def cases(settings: BenchSettings) -> list[Case]:
    """All cases, the reference first."""
    plain = GenerationOptions(mode=Mode.AR, max_new_tokens=settings.max_new_tokens)
    found = [Case(REFERENCE, plain)]
    for block_length in settings.block_lengths:
        if Mode.SELF_SPECULATION in settings.modes:
            options = plain.changed(mode=Mode.SELF_SPECULATION, block_length=block_length)
            found.append(Case(f"self_speculation B={block_length}", options, drafter=MODEL_DRAFTER))
        if Mode.QUADRATIC in settings.modes:
            options = plain.changed(mode=Mode.QUADRATIC, block_length=block_length)
            found.append(Case(f"quadratic B={block_length}", options, drafter=MODEL_DRAFTER))
        if Mode.DIFFUSION in settings.modes:
            for threshold in settings.thresholds:
                options = plain.changed(mode=Mode.DIFFUSION, block_length=block_length, threshold=threshold)
                found.append(Case(f"diffusion B={block_length} t={threshold:g}", options, is_lossless=False))
        if LOOKUP in settings.baselines:
            options = plain.changed(mode=Mode.SELF_SPECULATION, block_length=block_length, lookup_ngram=LOOKUP_NGRAM)
            found.append(Case(f"{LOOKUP} B={block_length}", options, drafter=LOOKUP_DRAFTER))
    for name, drafter in ((TRANSFORMERS, None), (TRANSFORMERS_LOOKUP, LOOKUP_DRAFTER)):
        if name in settings.baselines:
            found.append(Case(name, None, drafter=drafter))
    return found

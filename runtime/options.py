"""Wishes of one request. Facts of the model live in `config`, choices of a build in `nemodiff_trt.options`."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

from nemodiff_trt.contract import Limits
from nemodiff_trt.errors import InvalidInputError
from nemodiff_trt.runtime.decisions import CommitRule
from nemodiff_trt.runtime.sampling import Acceptance, SamplingOptions
from nemodiff_trt.vocabulary import MODE_ROLES, Mode, Role

# Of the published model card, for block diffusion.
DEFAULT_DIFFUSION_THRESHOLD = 0.9
IMPLEMENTED_MODES = tuple(Mode)


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationOptions:
    """How to answer a prompt.

    Attributes:
        mode: `ar`, `diffusion`, `self_speculation`, `quadratic` or `auto`. All but `diffusion` give the same tokens; `auto`
            goes from `ar` to `self_speculation` of any block length and back as load and text change.
        max_new_tokens: limit of the answer in tokens; the context may end it earlier.
        block_length: tokens of a block, 2 to the built maximum, which is the default. Not used by `ar`.
        threshold: confidence from 0 to 1 that fixes a masked position. In `diffusion` 0.9 unless `steps` is given; in
            `self_speculation` None and 0 draft in one pass, more drafts in several.
        steps: `diffusion` only, instead of a threshold: passes over which the masks of a block are evenly spread.
        learned_sampler: `diffusion` only: fix by the score of the engine's learned sampler in place of the confidence; the
            threshold is then one of scores. Needs engines with logits, and greedy decoding.
        draft_groups: `quadratic` only: draft for so many lengths at which a block may be accepted, the most likely ones by
            experience, instead of for all; far fewer tokens a run.
        num_leaves: `self_speculation` only: positions of a draft at which its second choice is verified too. Needs engines
            built for the mode `quadratic` as well, and with logits.
        lookup_ngram: `self_speculation` only: instead of drafting with the model, draft what followed the last tokens, at most
            so many, where prompt or answer had them before. A baseline for benchmarks. 0 for the model's drafts.
        stop: texts that end the answer and are not part of it.
        ignore_eos: go on after the end-of-sequence token.
        max_thinking_tokens: if none of the first so many tokens is `</think>`, the next one becomes it.
        enable_thinking: open a think section; for chats, whose template says how.
        sampling: how tokens are chosen; greedily unless it says otherwise.

    Raises:
        InvalidInputError: a field is out of range or contradicts the mode.
    """

    mode: Mode = Mode.SELF_SPECULATION
    max_new_tokens: int = 256
    block_length: int | None = None
    threshold: float | None = None
    steps: int | None = None
    learned_sampler: bool = False
    draft_groups: int | None = None
    num_leaves: int = 0
    lookup_ngram: int = 0
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False
    max_thinking_tokens: int | None = None
    enable_thinking: bool = False
    sampling: SamplingOptions = SamplingOptions()

    def __post_init__(self) -> None:
        object.__setattr__(self, "mode", _known_mode(self.mode))
        object.__setattr__(self, "stop", _stop_texts(self.stop))
        _check_integer("max_new_tokens", self.max_new_tokens, 1)
        _check_integer("num_leaves", self.num_leaves, 0)
        _check_integer("lookup_ngram", self.lookup_ngram, 0)
        for name, least in (("block_length", 2), ("steps", 1), ("draft_groups", 1), ("max_thinking_tokens", 0)):
            if getattr(self, name) is not None:
                _check_integer(name, getattr(self, name), least)
        for name in ("ignore_eos", "enable_thinking", "learned_sampler"):
            if not isinstance(getattr(self, name), bool):
                raise InvalidInputError(name, getattr(self, name), "true or false")
        if not isinstance(self.sampling, SamplingOptions):
            raise InvalidInputError("sampling", self.sampling, "SamplingOptions")
        if self.mode is Mode.AUTO and self.block_length is not None:
            raise InvalidInputError("block_length", self.block_length, "nothing in mode auto, which chooses it")
        self._check_commit_rule()
        if self.draft_groups is not None and self.mode is not Mode.QUADRATIC:
            raise InvalidInputError("draft_groups", self.draft_groups, f"nothing in mode {self.mode}, only in quadratic")
        if self.num_leaves and (self.mode is not Mode.SELF_SPECULATION or self.threshold):
            raise InvalidInputError("num_leaves", self.num_leaves, "0 but in mode self_speculation, drafting in one pass")
        if self.lookup_ngram and (self.mode is not Mode.SELF_SPECULATION or self.threshold or self.num_leaves):
            allowed = "0 but in mode self_speculation without threshold and leaves"
            raise InvalidInputError("lookup_ngram", self.lookup_ngram, allowed)
        self._check_sampler()
        self._check_acceptance()

    def _check_commit_rule(self) -> None:
        if self.threshold is not None:
            _check_share("threshold", self.threshold)
            if self.mode in (Mode.AR, Mode.AUTO):
                allowed = f"nothing in mode {self.mode}, which has no masks to fill in passes"
                raise InvalidInputError("threshold", self.threshold, allowed)
            if self.mode is Mode.QUADRATIC:
                raise InvalidInputError("threshold", self.threshold, "nothing in mode quadratic, which drafts in one pass")
        if self.steps is not None and self.mode is not Mode.DIFFUSION:
            raise InvalidInputError("steps", self.steps, f"nothing in mode {self.mode}, only in diffusion")
        if self.steps is not None and self.threshold is not None:
            raise InvalidInputError("steps", self.steps, "nothing when a threshold is given: either decides what is fixed")

    def _check_sampler(self) -> None:
        if self.learned_sampler and (self.mode is not Mode.DIFFUSION or self.steps is not None):
            raise InvalidInputError("learned_sampler", True, "false but in mode diffusion with a threshold")
        plain = SamplingOptions(seed=self.sampling.seed, logprobs=self.sampling.logprobs)
        if self.learned_sampler and self.sampling != plain:
            raise InvalidInputError(
                "learned_sampler", True, "false with sampling, bias or penalties: it scores the engine's guesses"
            )

    def _check_acceptance(self) -> None:
        """Rejection is exact for drafts that depend on no later one, as those of a single pass do."""
        if self.sampling.acceptance is Acceptance.REJECTION:
            rule = str(self.sampling.acceptance)
            if self.mode is not Mode.SELF_SPECULATION:
                raise InvalidInputError("acceptance", rule, f"coupled in mode {self.mode}; rejection is for self_speculation")
            if self.threshold or self.num_leaves or self.lookup_ngram:
                allowed = "coupled with a threshold, leaves or look-up; rejection needs one block drafted in one pass"
                raise InvalidInputError("acceptance", rule, allowed)

    def changed(self, **changes: Any) -> GenerationOptions:
        """These options with other values of fields, which may also be fields of `sampling`.

        Raises:
            InvalidInputError: there is no such field, or a value is not usable.
        """
        own, of_sampling = ({field.name for field in fields(kind)} for kind in (GenerationOptions, SamplingOptions))
        for name in changes.keys() - own - of_sampling:
            raise InvalidInputError(name, changes[name], f"only the options {', '.join(sorted(own | of_sampling))}")
        kept = {name: value for name, value in changes.items() if name in own}
        choice = {name: value for name, value in changes.items() if name in of_sampling}
        if choice:
            kept["sampling"] = replace(kept.get("sampling", self.sampling), **choice)
        return replace(self, **kept)

    def check_for(self, limits: Limits, roles: frozenset[Role]) -> None:
        """Compare with what an engine was built for.

        Raises:
            InvalidInputError: the mode's roles are missing, or the block is longer than built.
        """
        if not roles.issuperset(MODE_ROLES[self.mode]):
            available = [mode for mode in IMPLEMENTED_MODES if roles.issuperset(MODE_ROLES[mode])]
            raise InvalidInputError("mode", str(self.mode), " or ".join(available) + ", which the engines were built for")
        longest = self._longest_block(limits)
        if self.block_length is not None and self.block_length > longest:
            raise InvalidInputError("block_length", self.block_length, f"2 to {longest}, the built maximum")
        if self.draft_groups is not None and self.draft_groups > self.block_length_for(limits):
            allowed = f"1 to {self.block_length_for(limits)}, the lengths of acceptance of a block"
            raise InvalidInputError("draft_groups", self.draft_groups, allowed)
        if self.num_leaves:
            self._check_leaves(limits, roles)
        if self.lookup_ngram and Role.DECODE not in roles:
            allowed = "0 with engines that were not built for mode ar, which goes on where nothing is found"
            raise InvalidInputError("lookup_ngram", self.lookup_ngram, allowed)

    def _check_leaves(self, limits: Limits, roles: frozenset[Role]) -> None:
        if Role.QUADRATIC not in roles:
            raise InvalidInputError("num_leaves", self.num_leaves, "0 with engines that were not built for mode quadratic")
        block_length = self.block_length_for(limits)
        most = max(min(block_length - 1, limits.longest_step(Role.QUADRATIC) - block_length), 0)
        if self.num_leaves > most:
            raise InvalidInputError("num_leaves", self.num_leaves, f"0 to {most} beside a block of {block_length}")

    def block_length_for(self, limits: Limits) -> int:
        """Tokens of a block: as asked for, or as many as built for."""
        default = limits.quadratic_block_length if self.mode is Mode.QUADRATIC else limits.block_length
        return self.block_length or default

    def _longest_block(self, limits: Limits) -> int:
        if self.mode is not Mode.QUADRATIC:
            return limits.block_length
        if self.draft_groups is None:
            return limits.quadratic_block_length
        # Fewer groups leave room for a longer block in the longest step that was built.
        return limits.longest_step(Role.QUADRATIC) // (1 + self.draft_groups)

    def commit_rule(self) -> CommitRule:
        """Of the mode `diffusion`."""
        if self.steps is not None:
            return CommitRule(None, self.steps)
        return CommitRule(DEFAULT_DIFFUSION_THRESHOLD if self.threshold is None else float(self.threshold))


def _known_mode(value: object) -> Mode:
    allowed = " or ".join(IMPLEMENTED_MODES)
    try:
        mode = Mode(value)  # type: ignore[arg-type]
    except ValueError as error:
        raise InvalidInputError("mode", value, allowed) from error
    if mode not in IMPLEMENTED_MODES:
        raise InvalidInputError("mode", str(mode), allowed)
    return mode


def _stop_texts(value: object) -> tuple[str, ...]:
    texts = (value,) if isinstance(value, str) else value
    if not isinstance(texts, (tuple, list)) or not all(isinstance(text, str) and text for text in texts):
        raise InvalidInputError("stop", value, "texts of at least one character")
    return tuple(texts)


def _check_share(name: str, value: object) -> None:
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 <= value <= 1:
        raise InvalidInputError(name, value, "a number from 0 to 1")


def _check_integer(name: str, value: object, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise InvalidInputError(name, value, f"an integer of at least {least}")

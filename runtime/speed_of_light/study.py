"""The analysis over many prompts, block lengths and categories, beside what the modes reach on the same prompts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from nemodiff_trt.runtime.answer import GenerationResult
from nemodiff_trt.runtime.options import GenerationOptions
from nemodiff_trt.runtime.speed_of_light.answer import BlockAnalysis, analyse_answer
from nemodiff_trt.runtime.speed_of_light.totals import BoundTotals, diffusion_totals, speculation_totals
from nemodiff_trt.runtime.tri_mode_lm import TriModeLM
from nemodiff_trt.vocabulary import Mode

ALL = "all"
GREEDY, EXACT_GREEDY = "greedy", "greedy, exact"


@dataclass(frozen=True, slots=True)
class StudyPrompt:
    """A prompt in any form `TriModeLM` takes, its category, and whether the chat opens a think section."""

    prompt: Any
    category: str
    thinking: bool = False


@dataclass(frozen=True, slots=True)
class StudyOptions:
    """What is analysed; see `analyse_answer`. `thresholds` are those of mode diffusion."""

    block_lengths: tuple[int, ...]
    thresholds: tuple[float, ...]
    max_new_tokens: int
    budget: int


@dataclass(frozen=True, slots=True)
class StudyRow:
    """Figures of one way to decode at one block length in one category.

    Attributes:
        acceptance: mean tokens per denoise step; per cycle in self_speculation, the verifier's own token included.
        tokens_per_forward: as in `GenerationStats`, over all answers.
        target_share: share of answers equal to the serial target's; None for greedy acceptance, which has no answers.
        bounds: of the analysis.
    """

    way: str
    block_length: int
    category: str
    acceptance: float | None
    tokens_per_forward: float | None
    target_share: float | None
    bounds: BoundTotals | None = None


def run_study(
    model: TriModeLM, prompts: Sequence[StudyPrompt], options: StudyOptions, advance: Callable[[str], None]
) -> list[StudyRow]:
    """Rows of all ways; `advance` is told the block length and way before each prompt's analysis and each mode.

    Raises:
        InvalidInputError: a prompt, a block length or a threshold is not usable; nothing has run then.
    """
    for block_length in options.block_lengths:
        for threshold in options.thresholds:
            model.engine.check_options(_diffusion(options, block_length, threshold))
        model.engine.check_options(_speculation(options, block_length))
    plain = GenerationOptions(mode=Mode.AR, max_new_tokens=options.max_new_tokens)
    ids = [
        model.engine.check(prompt.prompt, plain.changed(enable_thinking=prompt.thinking), f"prompts[{index}]")[1]
        for index, prompt in enumerate(prompts)
    ]
    categories = list(dict.fromkeys(prompt.category for prompt in prompts))
    rows: list[StudyRow] = []
    for block_length in options.block_lengths:
        found: dict[str, list[BlockAnalysis]] = {category: [] for category in categories}
        targets: list[list[int]] = []
        for prompt, token_ids in zip(prompts, ids, strict=True):
            advance(f"B={block_length} speed of light")
            blocks = list(analyse_answer(model.session, token_ids, block_length, options.max_new_tokens, options.budget))
            found[prompt.category] += blocks
            targets.append([token for block in blocks for token in block.tokens])
        rows += _bound_rows(found, block_length)
        modes = {f"diffusion {threshold:g}": _diffusion(options, block_length, threshold) for threshold in options.thresholds}
        for way, wanted in {**modes, "self_speculation": _speculation(options, block_length)}.items():
            advance(f"B={block_length} {way}")
            rows += _mode_rows(way, wanted, _answers(model, prompts, targets, wanted))
    return rows


def _bound_rows(found: dict[str, list[BlockAnalysis]], block_length: int) -> list[StudyRow]:
    by_category = {ALL: [block for blocks in found.values() for block in blocks], **found}
    rows = []
    for category, blocks in by_category.items():
        bounds = BoundTotals.of(blocks)
        ways = {
            "serial": bounds.serial,
            GREEDY: bounds.greedy,
            EXACT_GREEDY: bounds.exact_greedy,
            "compaction": bounds.compaction,
        }
        for way, totals in ways.items():
            share = None if way == GREEDY else 1.0
            rows.append(StudyRow(way, block_length, category, totals.acceptance, totals.tokens_per_forward, share, bounds))
    return rows


def _diffusion(options: StudyOptions, block_length: int, threshold: float) -> GenerationOptions:
    limit = options.max_new_tokens
    return GenerationOptions(mode=Mode.DIFFUSION, block_length=block_length, threshold=threshold, max_new_tokens=limit)


def _speculation(options: StudyOptions, block_length: int) -> GenerationOptions:
    return GenerationOptions(mode=Mode.SELF_SPECULATION, block_length=block_length, max_new_tokens=options.max_new_tokens)


@dataclass(frozen=True, slots=True)
class _Answer:
    category: str
    result: GenerationResult
    is_target: bool


def _mode_rows(way: str, options: GenerationOptions, answers: Sequence[_Answer]) -> list[StudyRow]:
    block_length = options.block_length
    assert block_length is not None
    is_diffusion = options.mode is Mode.DIFFUSION
    rows = []
    for category in (ALL, *dict.fromkeys(answer.category for answer in answers)):
        chosen = [answer for answer in answers if category in (ALL, answer.category)]
        results = [answer.result for answer in chosen]
        totals = diffusion_totals(results, block_length) if is_diffusion else speculation_totals(results)
        share = sum(answer.is_target for answer in chosen) / len(chosen)
        rows.append(StudyRow(way, block_length, category, totals.acceptance, totals.tokens_per_forward, share))
    return rows


def _answers(
    model: TriModeLM, prompts: Sequence[StudyPrompt], targets: Sequence[list[int]], options: GenerationOptions
) -> list[_Answer]:
    """In the order of `prompts`. Rows of a batch are independent, so the counts are those of each prompt alone."""
    answers: dict[int, _Answer] = {}
    eos, limit = model.session.model.eos_token_id, options.max_new_tokens
    for thinking in (False, True):
        indices = [index for index, prompt in enumerate(prompts) if prompt.thinking is thinking]
        chats = [prompts[index].prompt for index in indices]
        results = model.generate(chats, options, enable_thinking=thinking) if chats else []
        for index, result in zip(indices, results, strict=True):
            # A seed that is an EOS belongs to no block, and blocks are whole where an answer is cut.
            ours, wanted = (
                [token for token in tokens if token != eos][:limit] for tokens in (result.token_ids, targets[index])
            )
            answers[index] = _Answer(prompts[index].category, result, ours == wanted)
    return [answers[index] for index in range(len(prompts))]

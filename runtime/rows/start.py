"""Which row decodes which mode."""

from __future__ import annotations

from dataclasses import dataclass, field

from nemodiff_trt.config import ModelConfig
from nemodiff_trt.contract import Limits
from nemodiff_trt.errors import InvalidInputError
from nemodiff_trt.runtime.learned_sampler import LearnedSampler
from nemodiff_trt.runtime.options import GenerationOptions
from nemodiff_trt.runtime.planner import PlannedRequest, Policy
from nemodiff_trt.runtime.rows.acceptance_histogram import AcceptanceHistogram
from nemodiff_trt.runtime.rows.autoregressive import AutoregressiveRow
from nemodiff_trt.runtime.rows.diffusion import DiffusionRow
from nemodiff_trt.runtime.rows.planned import PlannedRows
from nemodiff_trt.runtime.rows.prompt import PromptRow
from nemodiff_trt.runtime.rows.prompt_lookup import PromptLookupRow
from nemodiff_trt.runtime.rows.quadratic import PrunedQuadraticRow, QuadraticRow
from nemodiff_trt.runtime.rows.row_decoder import RowDecoder
from nemodiff_trt.runtime.rows.self_speculation import SelfSpeculationRow
from nemodiff_trt.runtime.rows.tree_speculation import TreeSpeculationRow
from nemodiff_trt.vocabulary import Mode


@dataclass(slots=True)
class SharedKnowledge:
    """What the rows of a loop learn from each other.

    Attributes:
        acceptance: of pruned quadratic requests, by block length; a missing entry is made.
        policy: of requests in mode `auto`, if there is one.
        sampler: of requests that ask for it, if there is one.
    """

    acceptance: dict[int, AcceptanceHistogram] = field(default_factory=dict)
    policy: Policy | None = None
    sampler: LearnedSampler | None = None


def start_row(
    prompt: PromptRow, options: GenerationOptions, model: ModelConfig, limits: Limits, shared: SharedKnowledge
) -> RowDecoder:
    """The decoder of a request whose prompt is cached and whose first token is emitted.

    Args:
        prompt: with nothing remaining.
        options: of the request.
        model: gives the mask id.
        limits: gives the block length where the request gives none.
        shared: of the loop.
    """
    sequence, num_cached, block_length = prompt.sequence, prompt.num_cached, options.block_length_for(limits)
    decider, mask = prompt.decider, model.mask_token_id
    if options.mode in (Mode.AR, Mode.AUTO):
        return AutoregressiveRow(sequence, num_cached, decider)
    if options.mode is Mode.DIFFUSION:
        sampler = shared.sampler if options.learned_sampler else None
        return DiffusionRow(sequence, num_cached, block_length, mask, decider, options.commit_rule(), sampler)
    if options.mode is Mode.QUADRATIC:
        if options.draft_groups is None:
            return QuadraticRow(sequence, num_cached, block_length, mask, decider)
        histogram = shared.acceptance.setdefault(block_length, AcceptanceHistogram(block_length))
        return PrunedQuadraticRow(sequence, num_cached, block_length, mask, decider, options.draft_groups, histogram)
    if options.lookup_ngram:
        return PromptLookupRow(sequence, num_cached, block_length, decider, options.lookup_ngram)
    if options.num_leaves:
        return TreeSpeculationRow(sequence, num_cached, block_length, mask, decider, options.num_leaves)
    return SelfSpeculationRow(sequence, num_cached, block_length, mask, decider, options.threshold or 0.0)


def start_planned(
    prompt: PromptRow, options: GenerationOptions, model: ModelConfig, shared: SharedKnowledge
) -> PlannedRows | None:
    """What gives the rows behind the first to a request in mode `auto`, None in other modes; arguments as of `start_row`.

    Raises:
        InvalidInputError: mode `auto` without a policy.
    """
    if options.mode is not Mode.AUTO:
        return None
    if shared.policy is None:
        raise InvalidInputError("mode", str(options.mode), "a fixed mode: there are no step times to choose by")
    return PlannedRows(model.mask_token_id, prompt.decider, PlannedRequest(shared.policy.acceptance))

"""Which row decodes which mode."""

from __future__ import annotations

from nemodiff_trt.config import ModelConfig
from nemodiff_trt.contract import Limits
from nemodiff_trt.runtime.options import GenerationOptions
from nemodiff_trt.runtime.rows.autoregressive import AutoregressiveRow
from nemodiff_trt.runtime.rows.diffusion import DiffusionRow
from nemodiff_trt.runtime.rows.prompt import PromptRow
from nemodiff_trt.runtime.rows.row_decoder import RowDecoder
from nemodiff_trt.runtime.rows.self_speculation import SelfSpeculationRow
from nemodiff_trt.vocabulary import Mode


def start_row(prompt: PromptRow, options: GenerationOptions, model: ModelConfig, limits: Limits) -> RowDecoder:
    """The decoder of a request whose prompt is cached and whose first token is emitted."""
    sequence, num_cached, decider, mask = prompt.sequence, prompt.num_cached, prompt.decider, model.mask_token_id
    block_length = options.block_length or limits.block_length
    if options.mode is Mode.AR:
        return AutoregressiveRow(sequence, num_cached, decider)
    if options.mode is Mode.DIFFUSION:
        return DiffusionRow(sequence, num_cached, block_length, mask, decider, options.commit_rule())
    return SelfSpeculationRow(sequence, num_cached, block_length, mask, decider, options.threshold or 0.0)

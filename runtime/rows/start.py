"""Which row decodes which mode."""

from __future__ import annotations

from nemodiff_trt.config import ModelConfig
from nemodiff_trt.contract import Limits
from nemodiff_trt.runtime.options import GenerationOptions
from nemodiff_trt.runtime.rows.autoregressive import AutoregressiveRow
from nemodiff_trt.runtime.rows.diffusion import DiffusionRow
from nemodiff_trt.runtime.rows.row_decoder import RowDecoder
from nemodiff_trt.runtime.rows.self_speculation import SelfSpeculationRow
from nemodiff_trt.runtime.sequence import Sequence
from nemodiff_trt.vocabulary import Mode


def start_row(
    sequence: Sequence, num_cached: int, options: GenerationOptions, model: ModelConfig, limits: Limits
) -> RowDecoder:
    """The decoder of a request whose prompt is cached and whose first token is emitted."""
    block_length = options.block_length or limits.block_length
    if options.mode is Mode.AR:
        return AutoregressiveRow(sequence, num_cached)
    if options.mode is Mode.DIFFUSION:
        return DiffusionRow(sequence, num_cached, block_length, model.mask_token_id, options.commit_rule())
    return SelfSpeculationRow(sequence, num_cached, block_length, model.mask_token_id, options.threshold or 0.0)
